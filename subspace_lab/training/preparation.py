"""What a method does to the base model, and what of it can be recorded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from subspace_lab.adapters.adalora import adalora_config, adalora_table, save_all_directions
from subspace_lab.adapters.conversion import SaveOnOriginalBase, taken_out_of_the_base
from subspace_lab.adapters.data_initialization import FROM_DATA, Batches
from subspace_lab.adapters.frozen import freeze
from subspace_lab.adapters.full import FullChange
from subspace_lab.adapters.initialization import refuse_quantized
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.methods import (
    SPLIT_THE_BASE,
    WHOLE_WEIGHTS,
    adapt,
    lora_config,
    peft_config_from_file,
)
from subspace_lab.adapters.modules import LoraModule, lora_modules, lora_table
from subspace_lab.adapters.restarts import Restarts
from subspace_lab.errors import UserError
from subspace_lab.module_table import module_table
from subspace_lab.recording.snapshots import Save
from subspace_lab.training.config import TrainConfig


@dataclass(frozen=True)
class Prepared:
    """A model ready to be trained.

    Attributes:
        model: the model; its trainable parameters are the method's.
        save: what writes a snapshot that is valid on the original base; None: `save_pretrained`.
        modules: None where rank cores can be recorded, else the module table.
        callbacks: what else of the method takes part in the training.
    """

    model: nn.Module
    save: Save | None = None
    modules: pd.DataFrame | None = None
    callbacks: Sequence[TrainerCallback] = ()


def prepare(
    config: TrainConfig, model: PreTrainedModel, *, device: torch.device, batches: Batches = ()
) -> Prepared:
    """Make the method of `config` trainable on a base model, and put its rank mask on.

    Args:
        config: the configuration.
        model: the base model; changed in place.
        device: where singular value decompositions of the base are taken.
        batches: of training examples, for initializations that look at some.

    Raises:
        UserError: if the method does not fit the model.
    """
    if config.method in WHOLE_WEIGHTS:
        change = FullChange(model, config.targets, rank=config.snapshot_rank)
        warnings.warn(
            f"method {config.method} has no rank cores: metrics and snapshots of dW are recorded",
            stacklevel=2,
        )
        return Prepared(model, change, change.modules)
    fields = {
        "method": config.method,
        "rank": config.rank,
        "alpha": config.scaling_alpha,
        "targets": config.targets,
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
    }
    if config.method == "adalora":
        peft_config = adalora_config(
            rank=config.rank,
            initial_rank=config.adalora_rank,
            alpha=config.scaling_alpha,
            targets=config.targets,
            lora_dropout=config.lora_dropout,
        )
    elif config.peft_config is None:
        peft_config = lora_config(**fields)  # type: ignore[arg-type]
    else:
        peft_config = peft_config_from_file(config.peft_config, fields)
    if config.method in (*SPLIT_THE_BASE, *FROM_DATA):
        model.to(device)  # type: ignore[arg-type]
    adapted = adapt(
        model, peft_config, seed=config.seed_of("init"), method=config.method, batches=batches
    )
    if config.masked:
        RankMask.of(config.mask_law()).attach(adapted)
    if config.freeze is not None:
        freeze(adapted, config.freeze, seed=config.seed_of("init"))
    if config.restart_every:
        return _with_restarts(config, adapted)
    if adapted.peft_type == "ADALORA":
        warnings.warn(
            "AdaLoRA has no rank cores: metrics, ranks and snapshots are recorded", stacklevel=2
        )
        return Prepared(adapted, save_all_directions, adalora_table(adapted))
    save = None
    if config.method in SPLIT_THE_BASE:
        save = SaveOnOriginalBase(taken_out_of_the_base(adapted))
    try:
        _warn_of_high_ranks(lora_modules(adapted))
    except UserError as reason:
        warnings.warn(
            f"only metrics and snapshots are recorded, no rank cores: {reason}", stacklevel=2
        )
        return Prepared(adapted, save, module_table([]))
    return Prepared(adapted, save)


def _with_restarts(config: TrainConfig, adapted: nn.Module) -> Prepared:
    """Have the adapter restart; its snapshots hold the sum over restarts."""
    refuse_quantized(adapted.get_base_model(), "restart_every")  # type: ignore[operator]
    restarts = Restarts(
        adapted,
        every=config.restart_every,
        restart=config.restart,
        pruned=config.pruned_moments,
        seed=config.seed,
    )
    return Prepared(adapted, SaveOnOriginalBase(restarts.merged), callbacks=[restarts])


def _warn_of_high_ranks(modules: Sequence[LoraModule]) -> None:
    """Name modules (m, n) whose rank is above min(m, n), which their updates cannot have."""
    high = [
        f"{module.name} ({module.B.shape[0]} x {module.A.shape[1]})"
        for module in modules
        if module.rank > min(module.B.shape[0], module.A.shape[1])
    ]
    if high:
        warnings.warn(
            f"the rank is above min(m, n) in {len(high)} of {len(modules)} modules, such as "
            f"{high[0]}: the rank of an update is at most min(m, n), so a smaller `rank` will do",
            stacklevel=3,
        )


def restrict_to_shards(config: TrainConfig, prepared: Prepared) -> Prepared:
    """Record metrics, masks and checkpoints only, where FSDP shards the adapter.

    Raises:
        UserError: if cores are asked for, there would be no checkpoint, or the adapter in the
            checkpoints would not be valid on the original base.
    """
    if config.method in (*WHOLE_WEIGHTS, *SPLIT_THE_BASE) or config.restart_every:
        raise UserError(f"method {config.method} cannot be recorded under FSDP: train it with DDP")
    if config.cores != "never" or not config.checkpoint_every:
        raise UserError(
            "FSDP shards the adapter, so it can be read from checkpoints only: set `cores` to "
            "never and `checkpoint_every`, or train with DDP"
        )
    if config.chooses or config.objective == "penalty":
        raise UserError(
            "FSDP shards the adapter, so its weights are not at hand: omit `early_stopping`, "
            "`test_size` and `objective` penalty, or train with DDP"
        )
    modules = prepared.modules
    if modules is None:
        modules = lora_table(lora_modules(prepared.model))
    return replace(prepared, save=_point_to_checkpoints, modules=modules)


def _point_to_checkpoints(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True)
    text = "The adapter was sharded: it is in the run's checkpoints.\n"
    (folder / "README").write_text(text, encoding="utf-8")
