"""AdaLoRA: rank directions are handed out among the layers by their importance.

dW = alpha / init_r B diag(E) A (Zhang et al., 2023, arXiv 2303.10512). All layers start with init_r
directions. From step t_i to step T - t_f a budget b of directions for all M layers together shrinks
from M init_r to M r (their equation 12),

    b(t) = M r + M (init_r - r) (1 - (t - t_i) / (T - t_i - t_f))^3,

and the b most important triplets (B's column, E's entry, A's row) keep their E, the others' is set
to zero, after each `every`-th step. PEFT has this as `update_and_allocate`, which training must
call; its loss carries a penalty on A A^T - I and B^T B - I, which is part of the recorded loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.module_names import base_name
from subspace_lab.module_table import module_table

if TYPE_CHECKING:
    from peft import AdaLoraConfig

RANKS_FILE = "ranks.parquet"
STEPS_BETWEEN_WRITES = 50


def adalora_config(
    *, rank: int, initial_rank: int, alpha: float, targets: Sequence[str], lora_dropout: float
) -> AdaLoraConfig:
    """Give PEFT's configuration; `RankAllocation` sets its steps when training begins.

    Args:
        rank: r, the mean rank of the layers at the end.
        initial_rank: init_r.
        alpha: numerator of the scaling alpha / init_r.
        targets: last path components of the layers to adapt.
        lora_dropout: dropout probability on the adapter's input.
    """
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_r=rank,
        init_r=initial_rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        lora_dropout=lora_dropout,
        total_step=1,
    )


class RankAllocation(TrainerCallback):
    """Has PEFT allocate the ranks at each step, and records them in `ranks.parquet`.

    The table has the columns step, module and rank: the directions that a module keeps after that
    step. The directions that were taken away are trained on until the next allocation.

    Args:
        model: the PEFT model with an AdaLoRA.
        folder: the run directory.
        phase: the shares of all steps at which the budget begins and ceases to shrink; None: as
            the adapter's configuration says.
    """

    def __init__(self, model: Any, folder: Path, *, phase: tuple[float, float] | None) -> None:
        self._model: Any = model
        self._config: AdaLoraConfig = self._model.peft_config["default"]
        self._folder = folder
        self._phase = phase
        self._ranks: list[dict[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the steps of the budget.

        Raises:
            UserError: if there are too few.
        """
        if self._phase is not None:
            first, last = (round(share * state.max_steps) for share in self._phase)
            self._config.total_step = state.max_steps
            self._config.tinit = first
            self._config.tfinal = state.max_steps - last
        first, last = self._config.tinit, self._config.total_step - self._config.tfinal
        if last < max(first + 1, 2):
            raise UserError(
                f"AdaLoRA's budget would shrink from step {first} to {last}: train longer (`steps`)"
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Allocate while the gradients are there."""
        step = state.global_step + 1
        self._model.base_model.update_and_allocate(step)
        if state.is_world_process_zero:
            self._ranks += [
                {"step": step, "module": module, "rank": rank}
                for module, rank in allocated_ranks(self._model).items()
            ]
            if step % STEPS_BETWEEN_WRITES == 0:
                self._write()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the table."""
        if state.is_world_process_zero:
            self._write()

    def _write(self) -> None:
        files.write_table(self._folder / RANKS_FILE, pd.DataFrame(self._ranks))


def allocated_ranks(model: Any) -> dict[str, int]:
    """Count the directions that each layer was left with by the last allocation."""
    config = model.peft_config["default"]
    ranks = {name: config.init_r for name, _ in _layers(model)}
    for name, kept in (config.rank_pattern or {}).items():
        ranks[base_name(name).partition(".lora_E")[0]] = sum(kept)
    return ranks


def adalora_table(model: Any) -> pd.DataFrame:
    """Make the module table, with r = init_r and PEFT's scaling alpha / (init_r + 1e-5)."""
    return module_table(
        (
            name,
            layer.lora_B["default"].shape[0],
            layer.lora_A["default"].shape[1],
            layer.r["default"],
            layer.scaling["default"] / (layer.r["default"] + 1e-5),
        )
        for name, layer in _layers(model)
    )


def save_all_directions(model: Any, folder: Path) -> None:
    """Save the adapter with all init_r directions, those taken away with E as it is, mostly 0.

    PEFT would cut them out, and, resizing the saved configuration, change the live one.
    """
    config = model.peft_config["default"]
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        model.save_pretrained(folder)
    finally:
        config.rank_pattern = pattern


def _layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.adalora.layer import AdaLoraLayer

    return [
        (base_name(name), layer)
        for name, layer in model.named_modules()
        if isinstance(layer, AdaLoraLayer)
    ]
