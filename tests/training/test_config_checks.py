"""Each rule on settings that do not fit together is broken by an example of its own."""

from __future__ import annotations

import pytest

from subspace_lab.errors import UserError
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.config_checks import RULES

MASKED = {"method": "droplora"}
EXAMPLES = [  # in the order of the rules
    {"method": "full", "rank_mask": True},
    {"method": "galore", "base_dtype": "bf16"},
    {"method": "galore", "optimizer": "sgd"},
    {"method": "lora", "rank_mask": True},
    {"log_every": 10, "cores": "never"},
    {"snapshot_rank": 2},
    {"global_batch": 8, "accumulation": 2},
    {"train_split": "train+validation"},
    {"masks_per_step": 2},
    MASKED | {"objective": "penalty", "compile": True},
    MASKED | {"objective": "noise-only", "masks_per_step": 2},
    MASKED | {"objective": "noise-only", "rescale": False},
    MASKED | {"objective": "noise-only", "penalty_strength": 1.0},
    MASKED | {"masks_per_step": 2, "keep_prob_schedule": "early", "schedule_steps": 2},
    MASKED | {"objective": "penalty", "sampling": "exact-k"},
    MASKED | {"objective": "second-order", "granularity": "token"},
    MASKED | {"masks_per_step": 2, "training_loss": "brier"},
    {"test_size": 4, "eval_split": "test"},
    {"early_stopping": True},
    {"method": "full", "freeze": "A"},
    {"method": "full", "lora_plus_ratio": 4.0},
    {"method": "dora", "freeze": "A"},
    {"freeze": "A", "lora_plus_ratio": 4.0},
    {"method": "pissa", "restart_every": 5},
    {"restart_every": 5, "freeze": "B"},
    {"restart_every": 5, "optimizer": "sgd", "reset_optimizer": False},
    {"initial_rank": 12},
    {"method": "adalora", "use_rslora": True},
    {"method": "adalora", "initial_rank": 8},
    {"method": "adalora", "allocation_start": 0.6},
]


@pytest.mark.parametrize(("rule", "settings"), list(zip(RULES, EXAMPLES, strict=True)))
def test_settings_that_do_not_fit_together_are_refused_by_their_rule(rule, settings):
    with pytest.raises(UserError) as refused:
        TrainConfig(**settings)
    assert str(refused.value) == rule.sentence.format(**vars(TrainConfig()) | settings)


@pytest.mark.parametrize("pruned", ["some", "prune:2", "prune:x"])
def test_what_a_restart_does_to_the_optimizer_is_checked_at_once(pruned):
    with pytest.raises(UserError, match="prune:SHARE"):
        TrainConfig(restart_every=5, reset_optimizer=pruned)
