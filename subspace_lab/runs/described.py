"""What the run.json of a run says about it."""

from __future__ import annotations

from typing import Any

from subspace_lab.models import DTYPES
from subspace_lab.theory.mask_law import MaskLaw, mask_law, rescale_name


class Described:
    """The facts of a run that its description holds.

    Args:
        description: the content of run.json; empty for adapters of other tools.
        recorded: whether this toolkit recorded the run.
    """

    def __init__(self, description: dict[str, Any], *, recorded: bool) -> None:
        self.description = description
        self.recorded = recorded

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was trained with (empty for a foreign adapter).

        `base_dtype` is the one that was used, also where it was left to the machine.
        """
        config = dict(self.description.get("config", {}))
        used = self.description.get("provenance", {}).get("base_dtype")
        if "base_dtype" in config and used is not None:
            names = {dtype: name for name, dtype in DTYPES.items()}
            config["base_dtype"] = names.get(used, used)
        if "rescale" in config:  # a boolean in runs of 0.1.0
            config["rescale"] = rescale_name(config["rescale"])
        return config

    @property
    def evaluated_split(self) -> str:
        """The split that the run is evaluated on; `test` where its training evaluated none.

        A run of another script does not say which examples it evaluated: "held-out".
        """
        otherwise = "test" if "task" in self.config else "held-out"
        split = str(self.config.get("eval_split", otherwise))
        return "test" if split == "none" else split

    @property
    def finished(self) -> bool:
        """Whether training came to its end (adapters of other tools are taken to be finished)."""
        return not self.recorded or self.description.get("status") == "finished"

    @property
    def status(self) -> str:
        """Whether training came to its end, in words."""
        if not self.recorded:
            return "saved adapters"
        diverged = "" if self.diverged_at is None else f", diverged at step {self.diverged_at}"
        return f"{self.description.get('status', 'unknown')}{diverged}"

    @property
    def diverged_at(self) -> int | None:
        """The step after which weights were seen not to be finite; None if they always were."""
        return self.description.get("diverged_at")

    @property
    def best_step(self) -> int | None:
        """The step of the best model by its evaluations, if the Trainer loaded it at its end."""
        return self.description.get("best_step")

    @property
    def chosen_step(self) -> int | None:
        """The step with the lowest loss on validation examples, if the run was to choose one."""
        return self.description.get("chosen_step")

    @property
    def gates_chosen(self) -> bool:
        """Whether training chose gates itself (`RankMask.use`): its steps have no single mask."""
        return bool(self.description.get("gates_chosen"))

    @property
    def mask_law(self) -> MaskLaw | None:
        """The law of the rank masks; None where nothing was masked."""
        settings = self.description.get("mask")
        return None if settings is None else mask_law(**settings)
