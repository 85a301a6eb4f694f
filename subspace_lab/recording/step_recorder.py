"""Recording a training loop of any kind: start, step, step, ..., finish.

At each scheduled step A and B are reduced on their own device, all modules of one shape in one
batched factorization; only the cores, r x r numbers, travel to the disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, distributed, nn

from subspace_lab import schedule
from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.mask_steps import OptimizerWatch
from subspace_lab.adapters.modules import lora_modules, lora_table
from subspace_lab.errors import UserError, check_counts
from subspace_lab.provenance import provenance
from subspace_lab.recording.gate_recorder import GateRecorder
from subspace_lab.recording.recording import Recording
from subspace_lab.recording.run_folder import refuse_unless_recorded
from subspace_lab.recording.snapshots import Save, Snapshots
from subspace_lab.recording.trainer_numbers import evaluation_metrics, optimizer_settings


class StepRecorder:
    """Records a training, and the masks of its rank mask, into a run directory.

        with recorder.start(model):
            for t, batch in enumerate(batches, start=1):
                loss = model(**batch).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                recorder.step(t, loss=loss)

    Core and adapter of the last step are recorded whatever stops the training. A run whose loss or
    weights are no longer finite is `diverged_at` the first step at which this was seen. Of several
    data-parallel processes, which all call these methods, the first one records.

    Args:
        folder: the run directory; new or empty, or that of the run that is continued.
        cores: when to record rank cores, a schedule (see `subspace_lab.schedule`).
        modules: the module table of a model whose matrices A and B are out of reach (full
            fine-tuning, sharded adapters), which is recorded with `cores="never"`; None: that of
            the model's LoRA layers.
        snapshots: when to save whole adapters; the first and the last are always saved.
        mask: the rank mask, if any; None: the one attached to the model, found at the start.
        adapter: name of the PEFT adapter.
        description: what run.json says about the run (configuration, data); provenance is added.
        save: what writes a snapshot, given the model and the folder; None: PEFT's
            `save_pretrained`.
        log_every: steps between two logs of the record's numbers (see `runs.step_numbers`),
            whose cores are recorded as well; None: none.
        log_by_projection: log medians over the modules of each projection, beside those over all.

    Raises:
        UserError: if cores are to be recorded of modules out of reach, or numbers to be logged
            without cores.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        cores: str = "full",
        modules: pd.DataFrame | None = None,
        snapshots: str = "never",
        mask: RankMask | None = None,
        adapter: str = "default",
        description: Mapping[str, Any] | None = None,
        save: Save | None = None,
        log_every: int | None = None,
        log_by_projection: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.mask = mask
        self.log_every = log_every
        self._schedules = {"cores": cores, "snapshots": snapshots}
        for text in self._schedules.values():
            schedule.parse(text)
        if modules is not None and cores != "never":
            raise UserError(
                "the cores of `modules` out of reach cannot be recorded: set `cores` to never"
            )
        check_counts(log_every=log_every)
        if log_every is not None and cores == "never":
            raise UserError(
                "`log_every` logs what the cores say, and none are recorded of this run: omit it"
            )
        self._modules = modules
        self._adapter = adapter
        self._description = dict(description or {})
        self._log_by_projection = log_by_projection
        self._snapshots = Snapshots(self.folder, adapter=adapter, save=save)
        self._recording: Recording | None = None
        self._taken: object = None

    @property
    def diverged_at(self) -> int | None:
        """The step at which the run was seen to have diverged; None if it has not."""
        return None if self._recording is None else self._recording.diverged_at

    def start(
        self,
        model: nn.Module,
        *,
        at: int = 0,
        steps: int | None = None,
        optimizer: Any = None,
        seed: int = 0,
        observe_gates: bool = True,
    ) -> Self:
        """Open the run directory, record step 0, and prepare for the first step.

        Args:
            model: the PEFT model; it may be wrapped for data parallelism.
            at: the step after which the training continues, whose record is in the folder; 0: a
                new run. Later steps of that record are deleted.
            steps: the last step that is planned; None: not known.
            optimizer: whose settings are recorded; None: they are not.
            seed: decides in which modules and steps gates are observed.
            observe_gates: whether they are; a model that is compiled would be compiled again.

        Raises:
            UserError: if the folder is occupied, or holds no record to continue; if the model has
                no LoRA layers, or is in DeepSpeed's hands; or if the recorder has been started
                before.
        """
        if type(model).__name__ == "DeepSpeedEngine":
            raise UserError(
                "DeepSpeed steps on copies of the weights, which a loop of your own cannot record: "
                "train with transformers.Trainer, or without DeepSpeed"
            )
        if self._modules is None:  # sharded parameters are only whole in their wrapper
            model = extract_model_from_parallel(model, keep_torch_compile=False)
        self.mask = self.mask or find_rank_mask(model)
        if self.mask is not None:
            self.mask.set_step(at + 1)
        if distributed.is_initialized() and distributed.get_rank() > 0:
            return self
        layers = [] if self._modules is not None else lora_modules(model, adapter=self._adapter)
        table = lora_table(layers) if self._modules is None else self._modules
        description = self._describe(optimizer) | {"planned_steps": steps}
        if at:
            self.interrupt()  # so that an earlier training of this recorder is on disk
            refuse_unless_recorded(self.folder, at, table, description.get("mask"))
        elif self._recording is not None:
            raise UserError(
                f"{self.folder} already holds a run, of this recorder's previous training: make "
                "a SubspaceRecorder with another folder for each training"
            )
        self._recording = Recording(
            model,
            self.folder,
            table,
            schedules=self._schedules,
            snapshots=self._snapshots,
            description=description,
            resume_at=at or None,
            log_every=self.log_every,
            log_by_projection=self._log_by_projection,
        )
        gates = None
        if layers and observe_gates:
            gates = GateRecorder(layers, self.folder, last=steps, seed=seed, resume_at=at or None)
        self._recording.start(at, layers, gates=gates)
        self._watch = OptimizerWatch(
            weights=lambda: [weight for layer in layers for weight in (layer.A, layer.B)],
            forward_seen=lambda: False,
            before=lambda _: self._begin_step_once(),
            after=lambda: None,
        )
        self._expect_step(at + 1)
        return self

    def _describe(self, optimizer: Any) -> dict[str, Any]:
        description: dict[str, Any] = {"provenance": provenance(), "schedules": self._schedules}
        if self.mask is not None:
            description["mask"] = asdict(self.mask.law)
        return description | self._description | {"optimizer": optimizer_settings(optimizer)}

    def _expect_step(self, step: int) -> None:
        """Prepare for the step that comes next."""
        self._last = step - 1
        self._step_begun = False
        self._taken = None if self.mask is None else self.mask.taken
        if self._recording is not None:
            self._recording.expect_step(step)
        self._started = time.perf_counter()

    def _begin_step(self) -> None:
        """Keep the weights that the step in hand starts from."""
        if self._recording is not None:
            self._recording.begin_step()
        self._step_begun = True

    def _begin_step_once(self) -> None:
        if not self._step_begun:
            self._begin_step()

    def step(
        self, t: int, *, loss: float | Tensor | None = None, **metrics: float
    ) -> dict[str, float]:
        """Record a step that was just taken; call it once after each step of the optimizer.

        Args:
            t: the number of the step, from 1.
            loss: its loss; a tensor is read, for which a GPU is waited for. None: not known.
            metrics: further columns of metrics.parquet, such as learning_rate.

        Returns:
            The numbers of the record that `log_every` asks for, by name; empty at other steps.

        Raises:
            UserError: if `t` does not follow the step before, or the run cannot be written.
        """
        kept, chosen = self._under()
        if self.mask is not None:
            self.mask.set_step(t + 1)
        if self._recording is None:
            return {}
        if t <= self._last:
            raise UserError(
                f"step {t} was to be recorded after step {self._last}: number the steps of the "
                "optimizer from 1, and continue a run with start(model, at=STEP)"
            )
        if chosen:
            self._recording.note_chosen_gates()
        if loss is not None:
            metrics["loss"] = float(loss)
        self._recording.add_measured(t, metrics)
        seconds = time.perf_counter() - self._started
        self._begin_step_once()  # in case the optimizer did not step: a gradient scaler skipped it
        numbers = self._recording.end_step(t, kept, seconds=seconds)
        self._expect_step(t + 1)
        return numbers

    def _under(self) -> tuple[Mapping[str, Any], bool]:
        """Give the step masks of the step just taken, and whether gates were chosen for it."""
        if self.mask is None:
            return {}, False
        if self.mask.taken is None or self.mask.taken is self._taken:
            return self.mask.kept, self.mask.gates_chosen  # the optimizer did not step, or unseen
        return self.mask.taken

    def flush(self) -> None:
        """Bring the record to disk; with each checkpoint, so that both continue together."""
        if self._recording is not None:
            self._recording.flush()

    def finish(self) -> None:
        """Save the trained adapter, write what is left and mark the run as finished."""
        if self._recording is not None and not self._recording.closed:
            self._recording.end(self._last)
            self._close("finished")

    def interrupt(self) -> None:
        """Write what was recorded of a training that was stopped, with the status `interrupted`.

        Nothing happens to a run that is finished, nor in processes that do not record.
        """
        self._close("interrupted")

    def _close(self, status: str) -> None:
        if self._recording is not None:
            self._watch.stop()
            self._recording.close(status)

    def add_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add what an evaluation of the model of a step found to that step's metrics."""
        if self._recording is not None:
            self._recording.add_evaluation(step, evaluation_metrics(metrics))

    def add_chosen(self, step: int, *, save: bool) -> None:
        """Record which step validation chose; the model has its weights now.

        Args:
            step: the step.
            save: save its adapter as a snapshot, where there is none.
        """
        if self._recording is not None:
            self._recording.add_chosen(step, save=save)

    def __enter__(self) -> Self:
        """Record the training in the block; its end finishes the run, an error interrupts it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the run, or write what was recorded of it if the block raised an error."""
        if kind is None:
            self.finish()
        else:
            self.interrupt()
