"""What a `transformers.Trainer` reports about a training, under the names of a run's record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

LOGGED = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "num_input_tokens_seen": "tokens_seen",
}
SPEED = ("_runtime", "_per_second", "_time")
SHARED_SETTINGS = ("betas", "eps", "weight_decay", "momentum", "amsgrad", "nesterov")


def step_metrics(logs: Mapping[str, float] | None) -> dict[str, float]:
    """Select the metrics of a step from what the Trainer logs."""
    return {name: float(logs[logged]) for logged, name in LOGGED.items() if logs and logged in logs}


def evaluation_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Select the results of an evaluation, without its speed and the epoch."""
    return {
        name: value
        for name, value in metrics.items()
        if not name.endswith(SPEED) and name != "epoch"
    }


def loaded_best_step(args: TrainingArguments, state: TrainerState) -> int | None:
    """Name the step of the best model, if the Trainer has put it in place of the last weights."""
    best = state.best_model_checkpoint
    loaded = args.load_best_model_at_end and best is not None and Path(best).is_dir()
    return state.best_global_step if loaded else None


def optimizer_settings(optimizer: Any) -> dict[str, Any] | None:
    """Describe the optimizer: its class, and the settings that all its parameters share."""
    groups = [group for group in getattr(optimizer, "param_groups", []) if group["params"]]
    if not groups:
        return None
    shared = {
        name: groups[0][name]
        for name in SHARED_SETTINGS
        if name in groups[0] and all(group[name] == groups[0][name] for group in groups)
    }
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    dtypes = {str(p.dtype).removeprefix("torch.") for group in groups for p in group["params"]}
    return {"name": type(inner).__name__, "dtypes": sorted(dtypes)} | shared
