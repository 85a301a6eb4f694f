"""Restarts: every K steps the adapter is merged into the base and begins anew.

ReLoRA (Lialin et al., 2024, arXiv 2307.05695), PeriodicLoRA and Chain of LoRA train a sequence of
adapters, each on the base that the one before has left:

    W <- W + scaling B A,    A <- a new draw (or kept),    B <- 0,

so that the run's update is the sum over restarts, dW = scaling (B_1 A_1 + B_2 A_2 + ...), and its
rank may exceed r. The function is the same before and after, up to rounding in the base's dtype.
What Adam remembers of the old A and B is forgotten (its step count too, so that the bias correction
begins anew), or pruned: ReLoRA zeroes the smallest entries of both moments.

The learning rate follows its own schedule; ReLoRA warms it up again after each restart.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab import files
from subspace_lab.adapters.modules import LoraModule, lora_modules

Restart = Literal["redraw", "keep_a"]

MERGED_FILE = "merged.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Restarts(TrainerCallback):
    """Merges and restarts a LoRA after the steps K, 2 K, ... but the last.

    Args:
        model: the PEFT model; its base weights are changed in place.
        every: K, optimizer steps between two restarts.
        restart: `redraw` draws A anew, `keep_a` keeps it; B is zero in both.
        pruned: share of the entries of Adam's moments that a restart sets to zero, the smallest
            ones; 1: the whole state is forgotten; 0: it is kept.
        seed: of the new A.

    Attributes:
        merged: what the base gained, for each module (A_i, B_i) in order.
    """

    def __init__(
        self, model: nn.Module, *, every: int, restart: Restart, pruned: float, seed: int
    ) -> None:
        self._modules = lora_modules(model)
        self._every = every
        self._restart = restart
        self._pruned = pruned
        self._seed = seed
        self.merged: dict[str, list[tuple[Tensor, Tensor]]] = {m.name: [] for m in self._modules}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restart where it is due."""
        step = state.global_step
        if step % self._every == 0 and step < state.max_steps and not control.should_training_stop:
            self.restart(kwargs["optimizer"], step)

    @torch.no_grad()
    def restart(self, optimizer: Any, step: int) -> None:
        """Merge all modules, begin anew, and reset the optimizer's memory of them.

        Args:
            optimizer: the optimizer of A and B, as it is or wrapped by accelerate.
            step: the step just taken; the new A is a function of it and the seed.
        """
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        for module in self._modules:
            A, B = module.A.detach().cpu().clone(), module.B.detach().cpu().clone()
            self._merge(module, A, B)
            module.B.zero_()
            if self._restart == "redraw":
                new = torch.empty(module.A.shape)
                # PEFT's own initialization
                nn.init.kaiming_uniform_(new, a=math.sqrt(5), generator=generator)
                module.A.copy_(new)
            for weight in (module.A, module.B):
                if weight.requires_grad:
                    forget(optimizer.state, weight, pruned=self._pruned)

    def _merge(self, module: LoraModule, A: Tensor, B: Tensor) -> None:
        weight: Tensor = module.layer.get_base_layer().weight  # type: ignore[operator]
        update = module.scaling * B.to(weight.device) @ A.to(weight.device)
        weight += (update.T if module.layer.fan_in_fan_out else update).to(weight.dtype)
        self.merged[module.name].append((A, B))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put what was merged beside the adapter of a checkpoint."""
        if state.is_world_process_zero:
            assert args.output_dir is not None
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            tensors = {
                f"{name}/{i}/{side}": factor
                for name, pairs in self.merged.items()
                for i, pair in enumerate(pairs)
                for side, factor in zip("AB", pair, strict=True)
            }
            files.write_tensors(folder / MERGED_FILE, tensors)

    @torch.no_grad()
    def resume(self, checkpoint: Path) -> None:
        """Bring the original base to where it was at a checkpoint, by the same sums in order."""
        tensors = load_file(checkpoint / MERGED_FILE)
        for module in self._modules:
            i = 0
            while (key := f"{module.name}/{i}/A") in tensors:
                self._merge(module, tensors[key], tensors[f"{module.name}/{i}/B"])
                i += 1


def forget(state: Any, weight: Tensor, *, pruned: float) -> None:
    """Forget a share of Adam's moments of a weight, the smallest entries of each; 1: everything.

    Args:
        state: the optimizer's state, by parameter.
        weight: the parameter.
        pruned: the share, in [0, 1].
    """
    if pruned == 1:
        state.pop(weight, None)
        return
    for name in MOMENTS:
        moment = state[weight][name]
        count = round(pruned * moment.numel())
        if count:
            smallest = moment.abs().flatten().topk(count, largest=False).indices
            moment.view(-1)[smallest] = 0
