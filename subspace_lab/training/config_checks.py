"""Settings of a training run that do not fit together, each with what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from subspace_lab.adapters.methods import WHOLE_WEIGHTS
from subspace_lab.errors import UserError


class Rule(NamedTuple):
    """A combination of settings that is refused.

    Attributes:
        broken: whether a configuration has it.
        sentence: what is wrong and what to do; fields of the configuration stand in braces.
    """

    broken: Callable[[Any], Any]
    sentence: str


def check_combinations(config: Any) -> None:
    """Refuse a `TrainConfig` whose settings do not fit together.

    Raises:
        UserError: by the first rule that it breaks.
    """
    for rule in RULES:
        if rule.broken(config):
            raise UserError(rule.sentence.format(**vars(config)))


def _whole(config: Any) -> bool:
    return config.method in WHOLE_WEIGHTS


def _plain(config: Any) -> bool:
    return config.method in ("lora", "droplora")


def _adalora(config: Any) -> bool:
    return bool(config.method == "adalora")


def _own_gates(config: Any) -> bool:
    return bool(config.objective != "loss" or config.masks_per_step > 1)


def _has_strength(config: Any) -> bool:
    return config.objective in ("penalty", "second-order")


RULES = (
    Rule(
        lambda c: _whole(c) and (c.rank_mask or c.peft_config),
        "`method` {method} has no adapter: omit `rank_mask` and `peft_config`",
    ),
    Rule(
        lambda c: _whole(c) and c.base_dtype == "bf16",
        "`method` {method} trains the base itself, in fp32: omit `base_dtype`",
    ),
    Rule(
        lambda c: c.method == "galore" and c.optimizer != "adamw",
        "`method` galore is an AdamW of its own: omit `optimizer`",
    ),
    Rule(
        lambda c: c.method == "lora" and c.rank_mask,
        "for LoRA with a rank mask, use `method` droplora",
    ),
    Rule(
        lambda c: c.log_every and (c.cores == "never" or _whole(c)),
        "`log_every` logs what rank cores say, and this run records none: omit it",
    ),
    Rule(
        lambda c: c.snapshot_rank is not None and not _whole(c),
        "`snapshot_rank` belongs to `method` full and galore: omit it",
    ),
    Rule(
        lambda c: c.global_batch is not None and c.accumulation != 1,
        "`global_batch` sets `accumulation`: set only one of the two",
    ),
    Rule(
        lambda c: c.train_split == "train+validation" and c.eval_split == "validation",
        "with `train_split` train+validation, the validation examples are part of the training "
        "set: set `eval_split` to test or none",
    ),
    # What is descended of a rank mask.
    Rule(
        lambda c: _own_gates(c) and not c.masked,
        "`objective` and `masks_per_step` are about a rank mask: set `method` to droplora",
    ),
    Rule(
        lambda c: _own_gates(c) and c.compile,
        "`objective` and `masks_per_step` choose gates in every forward pass: omit `compile`",
    ),
    Rule(
        lambda c: c.objective != "loss" and c.masks_per_step > 1,
        "`masks_per_step` averages the masked loss: omit `objective`",
    ),
    Rule(
        lambda c: c.objective != "loss" and c.rescale == "none",
        "`objective` {objective} is about gates of mean 1: set `rescale` to true",
    ),
    Rule(
        lambda c: c.penalty_strength is not None and not _has_strength(c),
        "`penalty_strength` belongs to `objective` penalty and second-order",
    ),
    Rule(
        lambda c: _own_gates(c) and c.keep_prob_schedule != "constant",
        "`objective` and `masks_per_step` draw other masks than one a step: set "
        "`keep_prob_schedule` to constant",
    ),
    Rule(
        lambda c: _has_strength(c) and c.sampling != "bernoulli",
        "`objective` {objective} is that of independent gates: set `sampling` to bernoulli",
    ),
    Rule(
        lambda c: c.objective == "second-order" and c.granularity != "step",
        "`objective` second-order is that of step masks: set `granularity` to step",
    ),
    Rule(
        lambda c: _own_gates(c) and c.training_loss != "cross_entropy",
        "`objective` and `masks_per_step` are of the cross-entropy: omit `training_loss`",
    ),
    # Which step is chosen.
    Rule(
        lambda c: c.test_size is not None and c.eval_split == "test",
        "`test_size` keeps test examples for the end: set `eval_split` to validation",
    ),
    Rule(
        lambda c: c.early_stopping and (c.eval_split != "validation" or not c.eval_every),
        "`early_stopping` chooses among evaluations on validation examples: set `eval_every`, and "
        "`eval_split` to validation",
    ),
    # Factors trained unlike, and restarts.
    Rule(
        lambda c: _whole(c) and c.freeze is not None,
        "`method` {method} has no adapter: omit `freeze`",
    ),
    Rule(
        lambda c: _whole(c) and c.lora_plus_ratio is not None,
        "`method` {method} has no adapter: omit `lora_plus_ratio`",
    ),
    Rule(
        lambda c: c.freeze is not None and not _plain(c),
        "`freeze` goes with `method` lora and droplora: omit it",
    ),
    Rule(
        lambda c: c.freeze is not None and c.lora_plus_ratio is not None,
        "`lora_plus_ratio` needs both factors trained: omit `freeze`",
    ),
    Rule(
        lambda c: c.restart_every and (not _plain(c) or c.peft_config is not None),
        "`restart_every` goes with `method` lora and droplora, not with `peft_config`",
    ),
    Rule(
        lambda c: c.restart_every and c.freeze == "B",
        "a restart sets B to zero, which is frozen: omit `freeze`",
    ),
    Rule(
        lambda c: c.restart_every and c.optimizer == "sgd" and c.reset_optimizer is not True,
        "`optimizer` sgd has no moments: omit `reset_optimizer`",
    ),
    # AdaLoRA's budget.
    Rule(
        lambda c: not _adalora(c) and c.initial_rank is not None,
        "`initial_rank` belongs to `method` adalora: omit it",
    ),
    Rule(
        lambda c: _adalora(c) and (c.rank_mask or c.peft_config is not None or c.use_rslora),
        "`method` adalora: omit `rank_mask`, `use_rslora` and `peft_config`",
    ),
    Rule(
        lambda c: _adalora(c) and c.adalora_rank <= c.rank,
        "`initial_rank` must be above `rank`, {rank}",
    ),
    Rule(
        lambda c: _adalora(c) and not 0 <= c.allocation_start < c.allocation_end <= 1,
        "`allocation_start` and `allocation_end` must be shares in ascending order, not "
        "{allocation_start} and {allocation_end}",
    ),
)
