"""The gate witness: what the mask really did in the first training steps, seen from outside.

A run says by which law it was masked; the witness measures it. It watches the first adapted
modules during the forward passes of the first steps and keeps the gates

    gate = output of lora_A / (A x),        (calls, rows, tokens, r),

for a few rows and tokens: 0 where a direction was dropped, the rescale factor s where it was kept.
From these anybody can tell granularity, rescale and whether micro-batches shared a mask, whatever
code applied it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from subspace_lab.adapters.modules import LoraModule
from subspace_lab.recording import files

STEPS = 2
MODULES = 2
ROWS = TOKENS = 4
FILE = "gates.safetensors"


@dataclass(frozen=True)
class Gates:
    """The gates of one module.

    Attributes:
        module: its name.
        steps: (calls,) the optimizer step that each forward pass belonged to.
        gates: (calls, rows, tokens, r); nan where A x is 0 or there is no such row or token.
    """

    module: str
    steps: Tensor
    gates: Tensor


class GateWitness:
    """Watches the first modules until `stop`.

    Args:
        modules: the adapted modules; hooks that mask them must be attached already.
    """

    def __init__(self, modules: list[LoraModule]) -> None:
        self.step = 1
        self._seen: dict[str, list[tuple[int, Tensor]]] = {m.name: [] for m in modules[:MODULES]}
        self._handles = [
            module.A_module.register_forward_hook(self._watch(module.name))
            for module in modules[:MODULES]
        ]

    def stop(self, folder: Path) -> None:
        """Stop watching, and write what was seen into the run directory."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        tensors = {}
        for name, seen in self._seen.items():
            if seen:
                tensors[f"{name}/steps"] = torch.tensor([step for step, _ in seen])
                tensors[f"{name}/gates"] = torch.stack([gates for _, gates in seen])
        if tensors:
            files.write_tensors(folder / FILE, tensors)

    def _watch(self, name: str) -> Callable[[nn.Linear, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not module.training or output.dim() != 3:
                return
            with torch.no_grad():
                x = inputs[0][:ROWS, :TOKENS]
                plain = nn.functional.linear(x, module.weight)
                gates = (output[:ROWS, :TOKENS] / plain).float().cpu()
            padded = torch.full((ROWS, TOKENS, gates.shape[-1]), float("nan"))
            padded[: gates.shape[0], : gates.shape[1]] = gates
            self._seen[name].append((self.step, padded))

        return hook


def read_gates(folder: Path) -> list[Gates]:
    """Read what a witness wrote; an empty list where there was none."""
    if not (folder / FILE).is_file():
        return []
    with files.open_tensors(folder / FILE) as tensors:
        names = sorted(key.removesuffix("/gates") for key in tensors.keys() if "/gates" in key)  # noqa: SIM118
        return [
            Gates(name, tensors.get_tensor(f"{name}/steps"), tensors.get_tensor(f"{name}/gates"))
            for name in names
        ]
