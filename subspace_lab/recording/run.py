"""A run, read back: recorded by this toolkit, or adapters that another tool trained.

`Run(path)` opens a run directory (also one that is still being written), a PEFT adapter folder, a
Trainer output folder with `checkpoint-*` folders, or a hub id. Analyses ask it for modules, steps,
cores, masks and factors, and never learn which of these it is.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.recording import files
from subspace_lab.recording.cores import Frame, Motion, RankCore, unpack_triangle
from subspace_lab.recording.factors import Factors
from subspace_lab.recording.peft_folder import AdapterFolder, open_checkpoints, resolve_adapter
from subspace_lab.recording.witness import Gates, read_gates

if TYPE_CHECKING:
    from numpy.typing import NDArray

CORES_PER_BATCH = 512
"""Cores that are read at once: work on them stays in the processor's cache."""

MODULE_COLUMNS = ["module", "layer", "projection", "m", "n", "r", "scaling"]


@dataclass(frozen=True)
class CoreBatch:
    """Cores of several steps and of modules that share a rank.

    Attributes:
        steps: (T,) optimizer steps.
        modules: module table of the M modules, in the order of the core's second dimension.
        core: the rank cores, batch dimensions (T, M).
    """

    steps: NDArray[np.int64]
    modules: pd.DataFrame
    core: RankCore


class Run:
    """Reads one run.

    Args:
        path: a run directory, a PEFT adapter folder, a Trainer output folder, or a hub id.

    Raises:
        UserError: if `path` is none of these.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.description: dict[str, Any] = {}
        self.recorded = (self.path / "run.json").is_file()
        if self.recorded:
            self.description = files.read_json(self.path / "run.json")
            self.snapshots: Mapping[int, AdapterFolder] = open_checkpoints(self.path / "snapshots")
        else:
            self.snapshots = self._open_foreign(path)

    def __repr__(self) -> str:
        """Name the run."""
        return f"Run({str(self.path)!r})"

    def _open_foreign(self, path: str | Path) -> Mapping[int, AdapterFolder]:
        if self.path.is_dir() and (checkpoints := open_checkpoints(self.path)):
            return checkpoints
        return {0: AdapterFolder(resolve_adapter(path))}

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was trained with (empty for a foreign adapter)."""
        return dict(self.description.get("config", {}))

    @property
    def mask_law(self) -> dict[str, Any] | None:
        """The law of the rank masks, as `MaskLaw`'s fields; None where nothing was masked."""
        return self.description.get("mask")

    @property
    def output_folder(self) -> Path:
        """Where analyses of this run are written."""
        return self.path / "analyses" if self.path.is_dir() else Path("analyses-of") / self.name

    @cached_property
    def modules(self) -> pd.DataFrame:
        """The module table: module, layer, projection, m, n, r, scaling."""
        if self.recorded:
            return pd.DataFrame(self.description["modules"], columns=MODULE_COLUMNS)
        return self._any_snapshot().modules[MODULE_COLUMNS].reset_index(drop=True)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step: step, loss, learning_rate, gradient_norm, ..., eval_*.

        Raises:
            UserError: if the run has none.
        """
        path = self.path / "metrics.parquet"
        if not path.is_file():
            raise UserError(f"{self.path} has no metrics.parquet: only recorded runs have metrics")
        return files.read_table(path)

    @property
    def steps(self) -> list[int]:
        """The steps that have cores: recorded ones, else those of the snapshots."""
        recorded = {int(step) for steps, _ in self._chunks("cores") for step in steps}
        return sorted(recorded or self.snapshots)

    @property
    def mask_steps(self) -> list[int]:
        """The steps whose masks were recorded."""
        return sorted({int(step) for steps, _ in self._chunks("masks") for step in steps})

    @property
    def gates(self) -> list[Gates]:
        """What the gate witness saw of the masks in the first training steps."""
        return read_gates(self.path)

    def masks_of_rank(self, rank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Give all recorded masks of the modules of rank r: steps (T,) and masks (T, M, r).

        Modules are in the order of `modules`; True = kept.

        Raises:
            UserError: if the run has no step masks.
        """
        steps, packed = [], []
        for chunk_steps, path in self._chunks("masks"):
            with files.open_tensors(path) as tensors:
                packed.append(tensors.get_tensor(f"r{rank}").numpy())
            steps.append(chunk_steps)
        if not steps:
            raise UserError(
                f"{self.path} has no step masks: train with --method droplora --granularity step"
            )
        unpacked = np.unpackbits(np.concatenate(packed), axis=-1, count=rank)
        return np.concatenate(steps), unpacked.view(np.bool_)

    def masks(self, module: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Give all recorded masks of a module: steps (T,) and masks (T, r), True = kept.

        Raises:
            UserError: if the run has no step masks, or no such module.
        """
        row, place = self._place(module)
        steps, masks = self.masks_of_rank(int(row.r))
        return steps, masks[:, place]

    def mask(self, step: int, module: str) -> NDArray[np.bool_]:
        """Give the mask (r,) under which optimizer step `step` was taken, True = kept.

        Raises:
            UserError: if that step's mask was not recorded.
        """
        steps, masks = self.masks(module)
        found = np.flatnonzero(steps == step)
        if not found.size:
            raise UserError(f"{self.path} has no mask of step {step}: see Run.mask_steps")
        mask: NDArray[np.bool_] = masks[found[0]]
        return mask

    def core(self, step: int, module: str) -> RankCore:
        """Give the rank core of one module at one step, without batch dimensions.

        Raises:
            UserError: if that step or module was not recorded.
        """
        self._place(module)
        for batch in self.cores(steps=[step], modules=[module]):
            return batch.core[0, 0]
        raise UserError(f"{self.path} has no core of step {step}: see Run.steps")

    def cores(
        self,
        *,
        steps: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        motions: bool = True,
    ) -> Iterator[CoreBatch]:
        """Iterate over the cores, `CORES_PER_BATCH` at a time (one step's, if they are more).

        Modules of a batch share a rank; of every module, steps come in ascending order. Where
        cores are computed from snapshots, a module that a snapshot lacks has no core of that step.

        Args:
            steps: only these; None: all.
            modules: only these; None: all.
            motions: also read the displacements since the previous step and since the start
                (snapshots of other tools have none).
        """
        chunks = self._chunks("cores")
        if not chunks:
            yield from self._cores_of_snapshots(steps, modules)
        for chunk_steps, path in chunks:
            wanted = np.arange(len(chunk_steps))
            if steps is not None:
                wanted = np.flatnonzero(np.isin(chunk_steps, list(steps)))
            for rank in self.modules["r"].unique():
                group = self.modules[self.modules["r"] == rank]
                chosen = np.ones(len(group), dtype=bool)
                if modules is not None:
                    chosen = np.isin(group["module"], list(modules))
                if not chosen.any():
                    continue
                table = group[chosen].reset_index(drop=True)
                scaling = torch.tensor(table["scaling"].to_numpy())
                length = max(1, CORES_PER_BATCH // len(table))
                for start in range(0, len(wanted), length):
                    places = wanted[start : start + length]
                    with files.open_tensors(path) as tensors:
                        arrays = {
                            name: _read(tensors.get_slice(f"r{rank}/{name}"), places, chosen)
                            for name in _array_names(motions)
                        }
                    core = _unpack(arrays, int(rank), scaling)
                    yield CoreBatch(chunk_steps[places], table, core)

    def factors(self, step: int, module: str) -> Factors:
        """Give B (m, r), A (r, n) and the scaling of a module, from the snapshot at `step`.

        Raises:
            UserError: if there is no snapshot of that step.
        """
        if step not in self.snapshots:
            raise UserError(
                f"{self.path} has no snapshot of step {step}, only of {sorted(self.snapshots)}: "
                "record more with --snapshots"
            )
        return self.snapshots[step].factors(module)

    def _any_snapshot(self) -> AdapterFolder:
        return self.snapshots[min(self.snapshots)]

    def _place(self, module: str) -> tuple[Any, int]:
        """Find a module's row of the table and its place among the modules of its rank."""
        found = self.modules[self.modules["module"] == module]
        if found.empty:
            raise UserError(f"{self.path} has no module {module!r}: see Run.modules")
        row = found.iloc[0]
        same_rank = self.modules[self.modules["r"] == row.r]
        return row, int(np.flatnonzero(same_rank["module"] == module)[0])

    def _chunks(self, kind: str) -> list[tuple[NDArray[np.int64], Path]]:
        """List the chunks of a kind in order, with the steps that each holds."""
        found = []
        for path in sorted((self.path / kind).glob("steps-*.safetensors")):
            with files.open_tensors(path) as tensors:
                found.append((tensors.get_tensor("steps").numpy(), path))
        return found

    def _cores_of_snapshots(
        self, steps: Collection[int] | None, modules: Collection[str] | None
    ) -> Iterator[CoreBatch]:
        """Compute cores from the adapters themselves, one module at a time.

        The module table is the snapshot's own: ranks differ from step to step in AdaLoRA. Of the
        rank directions only those that a recorded run trained count: snapshots of a split base
        (PiSSA, MiLoRA) hold the subtracted start behind them, [A; A0] and [B, -B0].
        """
        trained = dict(zip(self.modules["module"], self.modules["r"], strict=True))
        wanted = self.modules["module"] if modules is None else list(modules)
        for step in sorted(self.snapshots):
            if steps is not None and step not in steps:
                continue
            own = self.snapshots[step].modules[MODULE_COLUMNS]
            own = own[own["module"].isin(wanted)]
            for place in range(len(own)):
                table = own.iloc[[place]].reset_index(drop=True)
                module = table["module"].iloc[0]
                factors = self.factors(step, module)
                if self.recorded:
                    table["r"] = min(factors.rank, trained[module])
                rank = int(table["r"].iloc[0])
                core = RankCore(
                    Frame(linalg.triangular_factor(factors.A[:rank].mT)),
                    Frame(linalg.triangular_factor(factors.B[:, :rank])),
                    torch.tensor(factors.scaling, dtype=torch.float64),
                )
                yield CoreBatch(np.array([step]), table, core[None, None])


def open_runs(patterns: Collection[str]) -> list[Run]:
    """Open the runs that paths, globs or hub ids name, in order, each once.

    Raises:
        UserError: if a glob matches nothing, or a path is no run.
    """
    paths: dict[str, None] = {}
    for pattern in patterns:
        if any(character in pattern for character in "*?["):
            matches = sorted(
                str(path)
                for path in map(Path, glob.glob(pattern))  # noqa: PTH207 (absolute patterns)
                if path.is_dir() and (path / "run.json").is_file()
            )
            if not matches:
                raise UserError(f"no run matches {pattern!r}")
            paths |= dict.fromkeys(matches)
        else:
            paths[pattern] = None
    return [Run(path) for path in paths]


def _read(stored: Any, steps: NDArray[np.int64], modules: NDArray[np.bool_]) -> torch.Tensor:
    """Read the places of steps (ascending) and of modules from an array of a chunk."""
    first, end = int(steps[0]), int(steps[-1]) + 1
    array: torch.Tensor = stored[first:end]
    if len(array) > len(steps):
        array = array[steps - first]
    return array if modules.all() else array[:, modules]


def _array_names(motions: bool) -> list[str]:
    displacements = [
        f"{since}.{part}" for since in ("step", "start") for part in ("along", "across")
    ]
    return [
        f"{side}.{name}" for side in ("row", "column") for name in ["R"] + displacements * motions
    ]


def _unpack(arrays: dict[str, torch.Tensor], rank: int, scaling: torch.Tensor) -> RankCore:
    def motion(name: str) -> Motion | None:
        if f"{name}.along" not in arrays:
            return None
        across = unpack_triangle(arrays[f"{name}.across"], rank)
        return Motion(arrays[f"{name}.along"], across)

    def frame(side: str) -> Frame:
        R = unpack_triangle(arrays[f"{side}.R"], rank)
        return Frame(R, motion(f"{side}.step"), motion(f"{side}.start"))

    batch = arrays["row.R"].shape[:2]
    return RankCore(frame("row"), frame("column"), scaling.double().expand(batch))
