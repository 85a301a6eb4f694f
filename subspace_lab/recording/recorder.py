"""The recorder: a Trainer callback that reduces every adapted matrix to its rank core.

At each scheduled step A and B are reduced on their own device, all modules of one shape in one
batched factorisation; only the cores, r x r numbers, travel to the disk.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from subspace_lab import files
from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.modules import LoraModule, lora_modules
from subspace_lab.errors import UserError
from subspace_lab.linalg.rank_core import frame_core
from subspace_lab.module_names import PEFT_PREFIX, layer_and_projection
from subspace_lab.provenance import provenance
from subspace_lab.recording import schedule
from subspace_lab.recording.divergence import finite, true_loss, weights_are_finite
from subspace_lab.recording.gate_recorder import GateRecorder
from subspace_lab.recording.shape_batches import make_shape_batches
from subspace_lab.recording.writer import RunWriter, discard_record
from subspace_lab.runs.stored_cores import frame_arrays


class SubspaceRecorder(TrainerCallback):
    """Records a training run, and the masks of its rank mask, into a run directory.

    Core and adapter of the last step are recorded whatever stops the training. Where the Trainer
    loads the best model at its end, the adapter of its best step is saved as well, and run.json
    names it as `best_step`. A run whose loss or weights are no longer finite is `diverged_at` the
    first step at which this was seen. An `evaluate()` after training belongs to the step of the
    model that it evaluates.

    Args:
        folder: the run directory; new or empty.
        cores: when to record rank cores, a schedule (see `recording.schedule`).
        snapshots: when to save whole adapters; the first and the last are always saved.
        mask: the rank mask, if any; None: the one attached to the model, found at the start.
        adapter: name of the PEFT adapter.
        description: what run.json says of the run (configuration, data); provenance is added.
        resume_at: step of the checkpoint from which the Trainer continues this run; None: a new
            run.
        save: what writes a snapshot, given the model and the folder; None: PEFT's
            `save_pretrained`.

    Attributes:
        diverged_at: the step at which the run was seen to have diverged; None if it has not.

    Raises:
        UserError: when training begins, if `folder` is occupied or nothing can be recorded.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        cores: str = "full",
        snapshots: str = "never",
        mask: RankMask | None = None,
        adapter: str = "default",
        description: Mapping[str, Any] | None = None,
        resume_at: int | None = None,
        save: Callable[[nn.Module, Path], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.mask = mask
        self.diverged_at: int | None = None
        self._core_due = schedule.parse(cores)
        self._snapshot_due = schedule.parse(snapshots)
        self._schedules = {"cores": cores, "snapshots": snapshots}
        self._adapter = adapter
        self._description = dict(description or {})
        self._resume_at = resume_at
        self._save = save
        self._writer: RunWriter | None = None
        self._gate_recorder: GateRecorder | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Open the run directory and record step 0."""
        self._model: nn.Module = kwargs["model"]
        self.mask = self.mask or find_rank_mask(self._model)
        if self.mask is not None:  # which may have been attached after the Trainer was built
            self.mask.set_step(state.global_step + 1)
        self._kept: Mapping[str, NDArray[np.bool_]] = {}
        if not state.is_world_process_zero:
            return
        if self._writer is not None:
            self._start_over(args)
        self._logged_step = self._core_step = state.global_step
        self.diverged_at = self._known_divergence()
        self._modules = self._module_table()
        self._writer = RunWriter(
            self.folder,
            self._describe() | {"optimizer": optimizer_settings(kwargs.get("optimizer"))},
            self._modules,
            resume_at=self._resume_at,
        )
        if self._resume_at is None:
            self._save_snapshot(0)
        self._prepare_cores(args, state)

    def _start_over(self, args: TrainingArguments) -> None:
        """Discard the record of an attempt that ended in memory errors; refuse another training.

        Raises:
            UserError: unless the Trainer is trying a smaller batch.
        """
        assert self._writer is not None
        if self._writer.closed or not args.auto_find_batch_size:
            raise UserError(
                f"{self.folder} already holds a run, of this recorder's previous training: make "
                "a SubspaceRecorder with another folder for each call of train()"
            )
        self._writer.abandon()
        if self._gate_recorder is not None:
            self._gate_recorder.end_step()
            self._gate_recorder = None
        if self._resume_at is None:
            discard_record(self.folder)

    def _known_divergence(self) -> int | None:
        """Give the step at which the run that is continued diverged, if it had by then."""
        if self._resume_at is None:
            return None
        step = files.read_json(self.folder / "run.json").get("diverged_at")
        return step if step is not None and step <= self._resume_at else None

    def _module_table(self) -> pd.DataFrame:
        """Make the table of the modules that are recorded."""
        return module_table(lora_modules(self._model, adapter=self._adapter))

    def _prepare_cores(self, args: TrainingArguments, state: TrainerState) -> None:
        """Take hold of the matrices that are recorded, and record step 0."""
        modules = lora_modules(self._model, adapter=self._adapter)
        self._modules_of_rank: dict[int, list[LoraModule]] = defaultdict(list)
        for module in modules:
            self._modules_of_rank[module.rank].append(module)
        self._shape_batches = make_shape_batches(
            self._modules_of_rank, self._initial_values(modules)
        )
        if self._resume_at is None and self._schedules["cores"] != "never":
            self._record_cores(0)
        # A compiled model would have to be compiled again for the gate recorder's hooks.
        if not args.torch_compile:
            self._gate_recorder = GateRecorder(
                modules,
                self.folder,
                last=state.max_steps,
                seed=args.seed,
                resume_at=self._resume_at,
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the weights that the coming step starts from."""
        step = state.global_step + 1
        self._started = time.perf_counter()
        if self._writer is None:
            return
        self._writer.flush_now_and_then()
        if self._gate_recorder is not None:
            self._gate_recorder.begin_step(step)
        if self._schedules["cores"] != "never":  # any step may turn out to be the last
            for batch in self._shape_batches:
                batch.previous = batch.stacked()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the masks in use: the optimizer's step brings those of the next one."""
        self._kept = {} if self.mask is None else self.mask.kept

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step that was just taken."""
        if self._writer is None:
            return
        step = state.global_step
        self._writer.add_metrics(step, {"seconds": time.perf_counter() - self._started})
        if self._kept:
            self._writer.add_masks(step, self._masks_by_rank(self._kept))
        if self._gate_recorder is not None:
            self._gate_recorder.end_step()
        if self._core_due(step):
            self._record_cores(step)
        if self._snapshot_due(step):
            self._save_snapshot(step)
        if control.should_training_stop:
            self._record_last(step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last step, if an evaluation stopped the training.

        All stops come by here, and only here the model is sure to be the last and not the best
        one. An evaluation at the epoch's end is still to come, and may stop the training.
        """
        undecided = args.load_best_model_at_end and args.eval_strategy == "epoch"
        if self._writer is not None and (control.should_training_stop or undecided):
            self._record_last(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the Trainer's per-step numbers: loss, learning rate, gradient norm, tokens.

        What it logs every few steps is the mean loss since the last time: that is `window_loss`,
        and the loss of the step itself is not known.
        """
        names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
        names["num_input_tokens_seen"] = "tokens_seen"
        found = {new: float(logs[old]) for old, new in names.items() if logs and old in logs}
        if self._writer is None or "loss" not in found:
            return
        step = state.global_step
        window, self._logged_step = step - self._logged_step, step
        if args.logging_nan_inf_filter:
            batches = window * args.gradient_accumulation_steps * args.world_size
            norm = found.get("gradient_norm")
            found["loss"] = true_loss(found["loss"], norm, self._model, batches=batches)
        if not finite(found["loss"], found.get("gradient_norm", 0.0)):
            self._note_divergence(step)
        if window > 1:
            found |= {"loss": math.nan, "window_loss": found["loss"]}
        self._writer.add_metrics(step, found)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep evaluations (columns `eval_*`) with the step of the model that was evaluated."""
        if self._writer is None or not metrics:
            return
        speed = ("_runtime", "_per_second", "_time")
        kept = {name: value for name, value in metrics.items() if not name.endswith(speed)}
        kept.pop("epoch", None)
        if self._writer.closed:
            self._writer.add_metrics_after_the_end(self._loaded_step, kept)
        else:
            self._writer.add_metrics(state.global_step, kept)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Bring the record to disk with each checkpoint, so that both go on together."""
        if self._writer is not None:
            self._writer.flush(wait=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the trained adapter, write what is left and mark the run as finished."""
        if self._writer is None:
            return
        best = state.best_global_step if _best_was_loaded(args, state) else None
        if best is None:
            self._record_last(state.global_step)
        else:
            self._writer.describe(best_step=best)
            if not self._snapshot_path(best).is_dir():
                self._save_snapshot(best)
        self._loaded_step = state.global_step if best is None else best
        self._writer.close()

    def interrupt(self) -> None:
        """Write what was recorded of a training that was stopped, with the status `interrupted`.

        Nothing happens to a run that is finished, nor in processes that do not record.
        """
        if self._writer is not None:
            self._writer.close("interrupted")

    def _record_last(self, step: int) -> None:
        """Record core and adapter of the last step, where their schedules have not done so."""
        if self._schedules["cores"] != "never" and self._core_step < step:
            self._record_cores(step)
        if not self._snapshot_path(step).is_dir():
            self._save_snapshot(step)
        self._note_divergence(step)

    def _note_divergence(self, step: int) -> None:
        """Say so, here and in run.json, if the weights are not finite, once."""
        if self.diverged_at is None and not weights_are_finite(self._model):
            assert self._writer is not None
            self.diverged_at = step
            self._writer.describe(diverged_at=step)
            warnings.warn(
                f"the run {self.folder} has diverged: after step {step} its weights are not finite",
                stacklevel=2,
            )

    def _describe(self) -> dict[str, Any]:
        description: dict[str, Any] = {"provenance": provenance(), "schedules": self._schedules}
        if self.mask is not None:
            description["mask"] = asdict(self.mask.law)
        if self.diverged_at is not None:
            description["diverged_at"] = self.diverged_at
        return description | self._description

    def _initial_values(self, modules: list[LoraModule]) -> dict[str, tuple[Tensor, Tensor]]:
        """Give each module's (A, B) at step 0: the live ones; on resuming, the first snapshot's."""
        if self._resume_at is None:
            return {module.name: (module.A, module.B) for module in modules}
        path = self._snapshot_path(0) / "adapter_model.safetensors"
        values = {}
        with files.open_tensors(path) as tensors:
            for module in modules:
                pair = [
                    tensors.get_tensor(f"{PEFT_PREFIX}{module.name}.lora_{side}.weight")
                    for side in "AB"
                ]
                # A converted snapshot of a split base (PiSSA, MiLoRA) holds [A; A0] and [B, -B0].
                A0, B0 = pair[0][: module.rank], pair[1][:, : module.rank]
                values[module.name] = (A0.to(module.A), B0.to(module.B))
        return values

    def _record_cores(self, step: int) -> None:
        assert self._writer is not None
        self._core_step = step
        with _one_thread():
            self._writer.add_core(step, self._reduced())

    def _reduced(self) -> dict[str, Tensor]:
        """Reduce every batch to its cores: packed arrays `rR/NAME` (modules of rank R, ...)."""
        recorded: dict[str, Tensor] = {}
        for batch in self._shape_batches:
            frame = frame_core(batch.stacked(), batch.previous, batch.start)
            for name, values in frame_arrays(batch.side, frame):
                key = f"r{batch.rank}/{name}"
                if key not in recorded:
                    count = len(self._modules_of_rank[batch.rank])
                    recorded[key] = values.new_empty(count, *values.shape[1:])
                recorded[key][batch.places] = values.to(recorded[key].device)
        return recorded

    def _masks_by_rank(self, kept: Mapping[str, NDArray[np.bool_]]) -> dict[int, NDArray[np.bool_]]:
        names = self._modules["module"]
        return {
            rank: np.stack([kept[name] for name in names[self._modules["r"] == rank]])
            for rank in self._modules["r"].unique().tolist()
        }

    def _snapshot_path(self, step: int) -> Path:
        return self.folder / "snapshots" / f"step-{step:06d}"

    def _save_snapshot(self, step: int) -> None:
        assert self._writer is not None
        self._writer.refuse_if_gone()
        with files.replacing(self._snapshot_path(step)) as unfinished:
            if self._save is not None:
                self._save(self._model, unfinished)
                return
            self._model.save_pretrained(unfinished, selected_adapters=[self._adapter])  # type: ignore[operator]
            # PEFT puts an adapter of another name than "default" into a folder of that name.
            named = unfinished / self._adapter
            for file in list(named.glob("*")):
                file.rename(unfinished / file.name)
            if named.is_dir():
                named.rmdir()


def _best_was_loaded(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the Trainer has put its best checkpoint in place of the last weights."""
    best = state.best_model_checkpoint
    return bool(args.load_best_model_at_end) and best is not None and Path(best).is_dir()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: waking others costs more than thousands of tiny matrices take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def optimizer_settings(optimizer: Any) -> dict[str, Any] | None:
    """Give the optimizer's class and the settings that all its trained parameters share."""
    groups = [group for group in getattr(optimizer, "param_groups", []) if group["params"]]
    if not groups:
        return None
    names = ("betas", "eps", "weight_decay", "momentum", "amsgrad", "nesterov")
    shared = {
        name: groups[0][name]
        for name in names
        if name in groups[0] and all(group[name] == groups[0][name] for group in groups)
    }
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    dtypes = {str(p.dtype).removeprefix("torch.") for group in groups for p in group["params"]}
    return {"name": type(inner).__name__, "dtypes": sorted(dtypes)} | shared


def module_table(modules: list[LoraModule]) -> pd.DataFrame:
    """Make the module table: module, layer, projection, m, n, r, scaling."""
    rows = []
    for module in modules:
        layer, projection = layer_and_projection(module.name)
        sizes = {"m": module.B.shape[0], "n": module.A.shape[1], "r": module.rank}
        rows.append({"module": module.name, "layer": layer, "projection": projection} | sizes)
        rows[-1]["scaling"] = module.scaling
    return pd.DataFrame(rows)
