"""The record of one training in progress: what of each step goes into the run directory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from subspace_lab import files, schedule
from subspace_lab.adapters.modules import LoraModule
from subspace_lab.recording.core_recorder import CoreRecorder
from subspace_lab.recording.divergence import finite, true_loss, weights_are_finite
from subspace_lab.recording.gate_recorder import GateRecorder
from subspace_lab.recording.live_numbers import LiveNumbers, was_taken_from_the_base
from subspace_lab.recording.run_folder import discard_record
from subspace_lab.recording.snapshots import Snapshots
from subspace_lab.recording.writer import RunWriter
from subspace_lab.runs.run import Run


class Recording:
    """Writes the steps of a model in training, from step 0 or from a checkpoint's on.

    Args:
        model: the model.
        folder: the run directory.
        modules: the module table.
        schedules: of `cores` and `snapshots`.
        snapshots: saves the model's adapter.
        description: what run.json says about the run besides its modules.
        resume_at: the checkpoint's step; None: a new run.
        log_every: steps between two logs of the record's numbers; None: none.
        log_by_projection: whether they are given for each projection, too.

    Attributes:
        diverged_at: the step at which the run was seen to have diverged; None if it has not.

    Raises:
        UserError: if the folder is occupied.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        modules: pd.DataFrame,
        *,
        schedules: Mapping[str, str],
        snapshots: Snapshots,
        description: Mapping[str, Any],
        resume_at: int | None,
        log_every: int | None,
        log_by_projection: bool,
    ) -> None:
        self._model = model
        self._folder = folder
        self._modules = modules
        self._core_due = schedule.parse(schedules["cores"])
        self._snapshot_due = schedule.parse(schedules["snapshots"])
        self._records_cores = schedules["cores"] != "never"
        self._snapshots = snapshots
        self._resume_at = resume_at
        self._log_due = schedule.parse("never" if log_every is None else f"every:{log_every}")
        self._log_by_projection = log_by_projection
        self._numbers: LiveNumbers | None = None
        self._cores: CoreRecorder | None = None
        self._gates: GateRecorder | None = None
        self._gates_chosen = False
        self.diverged_at = self._known_divergence()
        if self.diverged_at is not None:
            description = {"diverged_at": self.diverged_at} | dict(description)
        self._writer = RunWriter(folder, description, modules, resume_at=resume_at)

    @property
    def closed(self) -> bool:
        """Whether the record is complete."""
        return self._writer.closed

    def _known_divergence(self) -> int | None:
        """The step at which the run that is continued diverged, if it had by then."""
        if self._resume_at is None:
            return None
        step = files.read_json(self._folder / "run.json").get("diverged_at")
        return step if step is not None and step <= self._resume_at else None

    def start(self, step: int, layers: Sequence[LoraModule], *, gates: GateRecorder | None) -> None:
        """Record the state before the first step, and prepare to record the steps.

        Args:
            step: the step that the training starts from.
            layers: the adapted layers whose cores are recorded; may be empty.
            gates: records the gates of some layers; None: no gates.
        """
        self._last_core = self._last_logged = step
        self._gates = gates
        if self._resume_at is None:
            self._save_snapshot(0)
        if not self._records_cores:
            return
        if self._resume_at is None:
            self._cores = CoreRecorder(layers, {layer.name: (layer.A, layer.B) for layer in layers})
            self._record_cores(0)
        else:
            self._cores = CoreRecorder(layers, self._snapshots.initial_values(layers))
        self._numbers = LiveNumbers(
            self._modules,
            since_start=was_taken_from_the_base(Run(self._folder)),
            by_projection=self._log_by_projection,
        )

    def expect_step(self, step: int) -> None:
        """Observe the forward passes of a step that is to come."""
        if self._gates is not None:
            self._gates.begin_step(step)

    def begin_step(self) -> None:
        """Keep the weights that the step in hand starts from."""
        self._writer.flush_now_and_then()
        if self._cores is not None:  # at every step, since any may turn out to be the last
            self._cores.keep_weights()

    def end_step(
        self, step: int, kept: Mapping[str, NDArray[np.bool_]], *, seconds: float
    ) -> dict[str, float]:
        """Record a step that was just taken.

        Args:
            step: its number.
            kept: its step masks, module name to (r,); empty for other laws.
            seconds: how long it took.

        Returns:
            Its numbers to be logged, which follow from cores that are recorded; empty where none
            are due.
        """
        self._writer.add_metrics(step, {"seconds": seconds})
        if kept:
            self._writer.add_masks(step, self._masks_by_rank(kept))
        if self._gates is not None:
            self._gates.end_step()
        numbers = {}
        if self._cores is not None and (self._core_due(step) or self._log_due(step)):
            arrays = self._record_cores(step)
            if self._numbers is not None and self._log_due(step):
                numbers = self._numbers.of_step(step, arrays, kept)
        if self._snapshot_due(step):
            self._save_snapshot(step)
        return numbers

    def end(self, step: int) -> None:
        """Record core and adapter of the last step, where their schedules have not done so."""
        if self._cores is not None and self._last_core < step:
            self._record_cores(step)
        if step not in self._snapshots:
            self._save_snapshot(step)
        self._note_divergence(step)

    def add_best(self, step: int) -> None:
        """Record that the model is that of its best step now, with its adapter."""
        self._writer.describe(best_step=step)
        if step not in self._snapshots:
            self._save_snapshot(step)

    def add_chosen(self, step: int, *, save: bool) -> None:
        """Record the step that validation chose, and its adapter, which the model has now."""
        self._writer.describe(chosen_step=step)
        if save and step not in self._snapshots:
            self._save_snapshot(step)

    def note_chosen_gates(self) -> None:
        """Record that steps have no single mask, since gates were chosen, once."""
        if not self._gates_chosen:
            self._gates_chosen = True
            self._writer.describe(gates_chosen=True)

    def add_measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add what was measured of a step, maybe its loss."""
        if not finite(metrics.get("loss", 0.0)):
            self._note_divergence(step)
        self._writer.add_metrics(step, metrics)

    def add_logged(self, step: int, metrics: dict[str, float], *, filtered: int | None) -> None:
        """Add what was logged after a step, the mean loss since the last time among it.

        A mean over several steps is `window_loss`, and the loss of the step itself is not known.

        Args:
            step: the step.
            metrics: what was logged.
            filtered: batches per step, if a loss that is not finite may have been replaced
                (`logging_nan_inf_filter`); None: if not.
        """
        window, self._last_logged = step - self._last_logged, step
        loss, gradient_norm = metrics["loss"], metrics.get("gradient_norm")
        if filtered is not None:
            loss = true_loss(loss, gradient_norm, self._model, batches=window * filtered)
        if not finite(loss, 0.0 if gradient_norm is None else gradient_norm):
            self._note_divergence(step)
        losses = {"loss": loss} if window <= 1 else {"loss": math.nan, "window_loss": loss}
        self._writer.add_metrics(step, metrics | losses)

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation of the model of a step, during training or after its end."""
        if self.closed:
            self._writer.add_metrics_after_the_end(step, metrics)
        else:
            self._writer.add_metrics(step, metrics)

    def flush(self) -> None:
        """Wait until everything is on disk."""
        self._writer.flush(wait=True)

    def close(self, status: str = "finished") -> None:
        """Write what is left and the run's final status, once."""
        if self._gates is not None:
            self._gates.stop()
        self._writer.close(status)

    def discard(self) -> None:
        """Stop recording, and delete what was recorded unless the run was resumed."""
        self._writer.abandon()
        if self._gates is not None:
            self._gates.stop()
        if self._resume_at is None:
            discard_record(self._folder)

    def _record_cores(self, step: int) -> dict[str, Tensor]:
        assert self._cores is not None
        self._last_core = step
        arrays = self._cores.arrays()
        self._writer.add_core(step, arrays)
        return arrays

    def _save_snapshot(self, step: int) -> None:
        self._writer.refuse_if_gone()
        self._snapshots.save(self._model, step)

    def _masks_by_rank(self, kept: Mapping[str, NDArray[np.bool_]]) -> dict[int, NDArray[np.bool_]]:
        names = self._modules["module"]
        return {
            rank: np.stack([kept[name] for name in names[self._modules["r"] == rank]])
            for rank in self._modules["r"].unique().tolist()
        }

    def _note_divergence(self, step: int) -> None:
        """Warn once, and note in run.json, if the weights are not finite."""
        if self.diverged_at is not None or weights_are_finite(self._model):
            return
        self.diverged_at = step
        self._writer.describe(diverged_at=step)
        warnings.warn(
            f"the run {self._folder} has diverged: after step {step} its weights are not finite",
            stacklevel=2,
        )
