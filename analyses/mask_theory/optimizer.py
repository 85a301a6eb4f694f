"""The optimizer that a run was trained with, as far as predictions depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from subspace_lab.runs.run import Run

CLASSES = {"adamw": "AdamW", "sgd": "SGD"}
"""torch's class for each optimizer that a configuration can name."""

UNEVEN = ("freeze", "lora_plus_ratio", "restart_every")
"""Settings under which A and B are trained unlike, or the optimizer forgets in between."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of torch with the settings that all trained weights share.

    Attributes:
        name: `AdamW` or `SGD`.
        betas: decay of AdamW's moments.
        weight_decay: decoupled under AdamW, in the gradient under SGD.
        momentum: of SGD.
        rounding: relative rounding error of a stored weight, half the machine epsilon.
    """

    name: str
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    momentum: float = 0.0
    rounding: float = 2.0**-24

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is the learning rate times the gradient, and nothing else."""
        return self.name == "SGD" and self.weight_decay == self.momentum == 0


def optimizer_of(run: Run) -> Optimizer | None:
    """Give the run's optimizer: as recorded, or as configured with the Trainer's other settings.

    None for one that is not known, has settings that predictions do not cover, or treats some
    weights in another way than others.
    """
    recorded, config = run.description.get("optimizer"), run.config
    if any(config.get(name) for name in UNEVEN):
        return None
    if recorded is None:
        named = CLASSES.get(config.get("optimizer", ""))
        return Optimizer(named, weight_decay=config.get("weight_decay", 0.0)) if named else None
    name, decay = recorded["name"], recorded.get("weight_decay")
    if name == "AdamW" and not recorded.get("amsgrad") and "betas" in recorded:
        momentum, betas = 0.0, tuple(recorded["betas"])
    elif name == "SGD" and not recorded.get("nesterov"):
        momentum, betas = recorded.get("momentum"), Optimizer.betas
    else:
        return None
    if decay is None or momentum is None:
        return None
    rounding = max(torch.finfo(getattr(torch, dtype)).eps for dtype in recorded["dtypes"]) / 2
    return Optimizer(name, betas, decay, momentum, rounding)
