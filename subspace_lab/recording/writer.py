"""The run directory, written while the run goes on.

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
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.runs.observed_gates import GATES_FILE

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
CORE_VALUES_PER_CHUNK = 1 << 24  # 128 MiB of float64
STEPS_PER_CHUNK = 64
SECONDS_BETWEEN_FLUSHES = 30.0

OF_THE_RECORD = ("run.json", "metrics.parquet", GATES_FILE, "cores", "masks", "snapshots")
"""What a recorder writes into a run directory."""


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
        """Flush if the last flush is a while ago, so that a killed or a slow run can be read."""
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
                "more is written there; start again with another --out"
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


def refuse_if_occupied(folder: Path) -> None:
    """Refuse to write a run where something is.

    Raises:
        UserError: if `folder` is a file, or holds anything.
    """
    if (folder / "run.json").exists():
        raise UserError(
            f"{folder} already holds a run: choose another --out, or continue it with --resume true"
        )
    # The Trainer makes its own, still empty, subfolder before the recorder starts.
    if folder.is_file() or any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"{folder} already exists and is not empty: choose another --out")


def discard_unfinished(folder: Path) -> None:
    """Delete a run that was stopped before anything could be resumed from, and what came of it.

    Raises:
        UserError: if `folder` holds anything else; then nothing is deleted.
    """
    known = {*OF_THE_RECORD, "checkpoints", "analyses", "evaluations"}
    found = sorted(folder.iterdir())
    others = [path for path in found if path.name not in known and path.suffix != ".unfinished"]
    if others:
        raise UserError(
            f"{folder} was stopped before its first checkpoint and also holds {others[0].name}: "
            "move that away, or choose another --out"
        )
    for path in found:
        _delete(path)


def discard_record(folder: Path) -> None:
    """Delete what a recorder wrote into a folder, and nothing else."""
    for name in OF_THE_RECORD:
        if (folder / name).exists():
            _delete(folder / name)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def forget_after(folder: Path, step: int) -> dict[int, dict[str, float]]:
    """Delete what a run recorded after `step`, or left half-written; give the rows that stay."""
    for place in ("", "cores", "masks", "snapshots"):
        for half in (folder / place).glob(".*.unfinished"):
            _delete(half)
    for kind in ("cores", "masks"):
        for chunk in sorted((folder / kind).glob("steps-*.safetensors")):
            if int(chunk.stem.split("-")[1]) > step:
                chunk.unlink()
    for snapshot in sorted((folder / "snapshots").glob("step-*")):
        if int(snapshot.name.split("-")[1]) > step:
            shutil.rmtree(snapshot)
    path = folder / "metrics.parquet"
    if not path.exists():
        return {}
    table = files.read_table(path)
    rows = table[table["step"] <= step].to_dict(orient="records")
    return {
        int(row.pop("step")): {str(k): v for k, v in row.items() if v == v}  # NaN: no value
        for row in rows
    }


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
    import pandas as pd

    files.write_table(path, pd.DataFrame(rows))
