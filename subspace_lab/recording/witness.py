"""The gate witness: what the mask really did during training, seen from outside.

A run says by which law it was masked; the witness measures it. In the first two steps and in a few
random ones later it watches some random adapted modules during their forward passes, and keeps the
gates

    gate = output of lora_A / (A x),        (calls, rows, tokens, r),

for a few rows and tokens: 0 where a direction was dropped, the rescale factor s where it was kept.
From these anybody can tell granularity, rescale and whether micro-batches shared a mask, whatever
code applied it. Between those steps the model has no hooks of the witness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from subspace_lab.adapters.modules import LoraModule
from subspace_lab.recording import files

FIRST_STEPS = 2
LATER_STEPS = 6
MODULES = 4
CALLS = 4
ROWS = TOKENS = 4
FILE = "gates.safetensors"


@dataclass(frozen=True)
class Gates:
    """The gates of one module.

    Attributes:
        module: its name.
        steps: (calls,) the optimizer step that each forward pass belonged to.
        gates: (calls, rows, tokens, r); nan where A x is 0 or there is no such row or token.
        rounding: relative rounding error of the layer's outputs (machine epsilon of their dtype).
    """

    module: str
    steps: Tensor
    gates: Tensor
    rounding: float


def observed_steps(last: int, *, seed: int) -> list[int]:
    """Give the steps to observe: the first two, and six of the later ones, drawn from the seed."""
    later = np.arange(FIRST_STEPS + 1, last + 1)
    chosen = np.random.default_rng([seed, 0]).permutation(later)[:LATER_STEPS]
    return [*range(1, min(FIRST_STEPS, last) + 1), *sorted(chosen.tolist())]


class GateWitness:
    """Watches a few random modules at the observed steps.

    Args:
        modules: the adapted modules; hooks that mask them must be attached already.
        folder: the run directory, which holds what was seen after every observed step.
        last: the last optimizer step.
        seed: decides on steps and modules; torch's generators are left alone.
        resume_at: step from which a run is resumed: what was seen after it is forgotten.
    """

    def __init__(
        self,
        modules: Sequence[LoraModule],
        folder: Path,
        *,
        last: int,
        seed: int,
        resume_at: int | None = None,
    ) -> None:
        self._modules = modules
        self._folder = folder
        self._seed = seed
        self._steps = set(observed_steps(last, seed=seed))
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: dict[str, list[tuple[int, Tensor, float]]] = {}
        for known in read_gates(folder) if resume_at else []:
            self._seen[known.module] = [
                (step, gates, known.rounding)
                for step, gates in zip(known.steps.tolist(), known.gates, strict=True)
                if step <= resume_at
            ]

    def begin_step(self, step: int) -> None:
        """Watch the step's modules, if the step is one to observe."""
        if step not in self._steps:
            return
        draw = np.random.default_rng([self._seed, step])
        for place in draw.permutation(len(self._modules))[:MODULES]:
            module = self._modules[place]
            hook = self._watch(step, module.name)
            self._handles.append(module.A_module.register_forward_hook(hook))

    def end_step(self) -> None:
        """Stop watching, and write all that was seen so far."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        tensors = {}
        for name, seen in self._seen.items():
            if seen:
                steps, gates, rounding = zip(*seen, strict=True)
                tensors[f"{name}/steps"] = torch.tensor(steps)
                tensors[f"{name}/gates"] = torch.stack(gates)
                tensors[f"{name}/rounding"] = torch.tensor(max(rounding))
        if tensors and self._folder.is_dir():  # a deleted run is refused by its writer
            files.write_tensors(self._folder / FILE, tensors)

    def _watch(self, step: int, name: str) -> Callable[..., None]:
        seen = self._seen.setdefault(name, [])

        def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Recomputation under gradient checkpointing is a further call of the same step.
            calls = sum(place == step for place, _, _ in seen)
            if not module.training or output.dim() != 3 or calls >= CALLS:
                return
            with torch.no_grad():
                x = inputs[0][:ROWS, :TOKENS]
                plain = nn.functional.linear(x, module.weight)
                gates = (output[:ROWS, :TOKENS].float() / plain.float()).cpu()
            padded = torch.full((ROWS, TOKENS, gates.shape[-1]), float("nan"))
            padded[: gates.shape[0], : gates.shape[1]] = gates
            seen.append((step, padded, torch.finfo(output.dtype).eps))

        return hook


def read_gates(folder: Path) -> list[Gates]:
    """Read what a witness wrote; an empty list where there was none."""
    if not (folder / FILE).is_file():
        return []
    with files.open_tensors(folder / FILE) as tensors:
        keys = set(tensors.keys())
        found = []
        for name in sorted(key.removesuffix("/gates") for key in keys if key.endswith("/gates")):
            rounding = torch.finfo(torch.bfloat16).eps  # of older files, which do not say
            if f"{name}/rounding" in keys:
                rounding = float(tensors.get_tensor(f"{name}/rounding"))
            steps, gates = (tensors.get_tensor(f"{name}/{part}") for part in ("steps", "gates"))
            found.append(Gates(name, steps, gates, rounding))
        return found
