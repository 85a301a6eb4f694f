"""The run directory, written while the run continues.

    RUN/run.json                 schema version, status, configuration, provenance, module table
    RUN/metrics.parquet          one row per optimizer step
    RUN/cores/steps-*-*.safetensors, RUN/masks/steps-*-*.safetensors
    RUN/snapshots/step-NNNNNN/   PEFT adapter folders

A chunk holds `steps` (T,) and, for the modules of each rank r in the module table's order, arrays
`rR/NAME` (T, modules, ...). A background thread writes chunks: masks before the cores of the same
steps, so that no core is ever on disk without its mask; metrics last, so that the last step in
`metrics.parquet` is the step through which the whole record is on disk.
"""

from __future__ import annotations

import atexit
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.recording.run_folder import forget_after, refuse_if_occupied

SCHEMA_VERSION = 1
CORE_VALUES_PER_CHUNK = 1 << 24  # 128 MiB of float64
STEPS_PER_CHUNK = 64
SECONDS_BETWEEN_FLUSHES = 30.0


class RunWriter:
    """Writes one run; every method but `flush(wait=True)` and `close` returns at once.

    A program that ends without `close` leaves the record complete, with the status `interrupted`,
    unless it was killed: then what was flushed is there, with the status `running`.

    Args:
        folder: the run directory; must be new or empty unless `resume_at` is given.
        description: what run.json says besides status and modules.
        modules: the module table: module, layer, projection, m, n, r, scaling.
        resume_at: continue the run in `folder` after this step and forget what it recorded later.

    Raises:
        UserError: if `folder` already holds something; of every method: if the run cannot be
            written, or its folder was moved or deleted since.
    """

    def __init__(
        self,
        folder: Path,
        description: Mapping[str, Any],
        modules: pd.DataFrame,
        *,
        resume_at: int | None = None,
    ) -> None:
        self.folder = folder
        self._description = dict(description)
        self._modules = modules
        self._cores: dict[int, dict[str, Tensor]] = {}
        self._masks: dict[int, dict[str, Tensor]] = {}
        self._metrics: dict[int, dict[str, float]] = {}
        if resume_at is None:
            refuse_if_occupied(folder)
        else:
            self._metrics = forget_after(folder, resume_at)
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._failure: Exception | None = None
        self._flushed = time.monotonic()
        self._thread = threading.Thread(target=self._work, daemon=True, name="run-writer")
        self._thread.start()
        self.closed = False
        self._status = "running"
        self._write_description()
        atexit.register(self._close_at_exit)

    def describe(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self._description |= facts
        self.refuse_if_gone()
        self._write_description()

    def add_core(self, step: int, arrays: dict[str, Tensor]) -> None:
        """Keep the packed core arrays `rR/NAME` (modules, ...) of one step."""
        self._cores[step] = arrays
        values = sum(array.numel() for array in arrays.values())
        if len(self._cores) >= min(STEPS_PER_CHUNK, max(1, CORE_VALUES_PER_CHUNK // values)):
            self._write_chunk("masks", self._masks)
            self._write_chunk("cores", self._cores)

    def add_masks(self, step: int, masks: Mapping[int, NDArray[np.bool_]]) -> None:
        """Keep the step masks: for each rank r, (modules, r) bool."""
        packed = {f"r{rank}": torch.from_numpy(np.packbits(m, -1)) for rank, m in masks.items()}
        self._masks[step] = packed
        if len(self._masks) >= STEPS_PER_CHUNK:
            self._write_chunk("masks", self._masks)

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add columns to the metrics row of one step."""
        self._metrics.setdefault(step, {}).update(values)

    def flush_now_and_then(self) -> None:
        """Flush if the last flush was long ago, so that a killed or slow run can be read."""
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def flush(self, *, wait: bool = False) -> None:
        """Hand everything to the writing thread, and wait for the disk if asked to."""
        self._flushed = time.monotonic()
        self.refuse_if_gone()
        self._write_chunk("masks", self._masks)
        self._write_chunk("cores", self._cores)
        if self._metrics:  # a table without rows would lack the column `step`, too
            rows = self._metrics_rows()
            self._jobs.put(lambda: _write_metrics(self.folder / "metrics.parquet", rows))
        if wait:
            self._jobs.join()
            self._raise_failure()

    def close(self, status: str = "finished") -> None:
        """Write what is left and the run's final status, once: `interrupted` if that fails."""
        if self.closed:
            return
        try:
            self.flush(wait=True)
        except BaseException:
            self._stop("interrupted")
            raise
        self._stop(status)

    def abandon(self) -> None:
        """Write nothing more; what is on disk stays."""
        self._jobs.join()
        self._stop(None)

    def add_metrics_after_the_end(self, step: int, values: Mapping[str, float]) -> None:
        """Add columns to the metrics row of one step of a closed run, and write them at once."""
        self.add_metrics(step, values)
        self.refuse_if_gone()
        _write_metrics(self.folder / "metrics.parquet", self._metrics_rows())

    def refuse_if_gone(self) -> None:
        """Refuse to write into a folder that is no longer the run's.

        Raises:
            UserError: if the folder was moved or deleted since the run began.
        """
        if not (self.folder / "run.json").is_file():
            self._stop(None)
            raise UserError(
                f"{self.folder} was moved or deleted while the run was being recorded: nothing "
                "more is written there; start again with another folder"
            )

    def _stop(self, status: str | None) -> None:
        self.closed = True
        atexit.unregister(self._close_at_exit)
        self._jobs.put(None)
        self._thread.join()
        if status is not None and (self.folder / "run.json").is_file():
            self._status = status
            self._write_description()

    def _close_at_exit(self) -> None:
        try:
            self.close("interrupted")
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)

    def _metrics_rows(self) -> list[dict[str, float]]:
        return [{"step": step, **row} for step, row in sorted(self._metrics.items())]

    def _write_description(self) -> None:
        content = {"schema_version": SCHEMA_VERSION, "status": self._status, **self._description}
        content["modules"] = self._modules.to_dict(orient="records")
        files.write_json(self.folder / "run.json", content)

    def _write_chunk(self, kind: str, pending: dict[int, dict[str, Tensor]]) -> None:
        self._raise_failure()
        if not pending:
            return
        steps = sorted(pending)
        stacked = {
            name: torch.stack([pending[step][name] for step in steps]) for name in pending[steps[0]]
        }
        copied, ready = _copy_to_host(stacked)
        copied["steps"] = torch.tensor(steps)
        path = self.folder / kind / f"steps-{steps[0]:08d}-{steps[-1]:08d}.safetensors"

        def write() -> None:
            ready()
            files.write_tensors(path, copied)

        self._jobs.put(write)
        pending.clear()  # last: an interrupted flush can be repeated

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._failure is None:
                    job()
            except Exception as failure:
                self._failure = failure
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _copy_to_host(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Start copies to the host; the returned function waits until they have arrived."""
    on_device = [t for t in tensors.values() if t.is_cuda]
    if not on_device:
        return dict(tensors), lambda: None
    copied = {}
    for name, tensor in tensors.items():
        copied[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        copied[name].copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copied, event.synchronize


def _write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    files.write_table(path, pd.DataFrame(rows))
