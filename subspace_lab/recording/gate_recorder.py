"""What the mask really did during training, measured at the outputs of some layers.

A run states the law of its masks; the gate recorder measures them. In the first two steps and in a
few random later ones it hooks some random adapted modules during their forward passes, and keeps
the gates

    gate = output of lora_A / (A x),        (calls, rows, tokens, r),

for a few rows and tokens: 0 where a direction was dropped, the rescale factor s where it was kept.
They show granularity, rescale and whether micro-batches shared a mask, whatever code applied it.
Between those steps the model has no hooks of the recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from subspace_lab import files
from subspace_lab.adapters.modules import LoraModule
from subspace_lab.runs.observed_gates import GATES_FILE, read_gates

FIRST_STEPS = 2
LATER_STEPS = 6
MODULES = 4
CALLS = 4
ROWS = TOKENS = 4


def observed_steps(last: int, *, seed: int) -> list[int]:
    """List the steps to observe: the first two, and six later ones drawn from the seed."""
    later = np.arange(FIRST_STEPS + 1, last + 1)
    chosen = np.random.default_rng([seed, 0]).permutation(later)[:LATER_STEPS]
    return [*range(1, min(FIRST_STEPS, last) + 1), *sorted(chosen.tolist())]


class GateRecorder:
    """Records the gates of a few random modules at the observed steps.

    Args:
        modules: the adapted modules; hooks that mask them must be attached already.
        folder: the run directory, written after every observed step.
        last: the last optimizer step; None where that is not known: then only the first are
            observed.
        seed: decides on steps and modules; torch's generators are left alone.
        resume_at: step from which a run is resumed: gates observed after it are discarded.
    """

    def __init__(
        self,
        modules: Sequence[LoraModule],
        folder: Path,
        *,
        last: int | None,
        seed: int,
        resume_at: int | None = None,
    ) -> None:
        self._modules = modules
        self._folder = folder
        self._seed = seed
        self._steps = set(observed_steps(FIRST_STEPS if last is None else last, seed=seed))
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: dict[str, list[tuple[int, Tensor, float]]] = {}
        for known in read_gates(folder) if resume_at else []:
            self._seen[known.module] = [
                (step, gates, known.rounding)
                for step, gates in zip(known.steps.tolist(), known.gates, strict=True)
                if step <= resume_at
            ]

    def begin_step(self, step: int) -> None:
        """Observe the step's modules, if the step is an observed one."""
        if step not in self._steps:
            return
        draw = np.random.default_rng([self._seed, step])
        for place in draw.permutation(len(self._modules))[:MODULES]:
            module = self._modules[place]
            hook = self._observe(step, module.name)
            self._handles.append(module.A_module.register_forward_hook(hook))

    def end_step(self) -> None:
        """Remove the hooks, and write all gates so far."""
        if not self._handles:
            return
        self.stop()
        tensors = {}
        for name, seen in self._seen.items():
            if seen:
                steps, gates, rounding = zip(*seen, strict=True)
                tensors[f"{name}/steps"] = torch.tensor(steps)
                tensors[f"{name}/gates"] = torch.stack(gates)
                tensors[f"{name}/rounding"] = torch.tensor(max(rounding))
        if tensors and self._folder.is_dir():  # a deleted run is refused by its writer
            files.write_tensors(self._folder / GATES_FILE, tensors)

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _observe(self, step: int, name: str) -> Callable[..., None]:
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
