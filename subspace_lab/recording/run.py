"""A run, read back: recorded by this toolkit, or adapters that another tool trained.

`Run(path)` opens a run directory (also one that is still being written), a PEFT adapter folder, a
Trainer output folder with `checkpoint-*` folders, or a hub id. Analyses ask it for modules, steps,
cores, masks and factors, and never learn which of these it is.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from subspace_lab.errors import UserError
from subspace_lab.models import DTYPES
from subspace_lab.recording import files
from subspace_lab.recording.core_batches import (
    MODULE_COLUMNS,
    CoreBatch,
    computed_batches,
    recorded_batches,
)
from subspace_lab.recording.factors import Factors
from subspace_lab.recording.peft_files.configuration import CONFIG_FILE
from subspace_lab.recording.peft_folder import (
    AdapterFolder,
    checkpoint_folders,
    open_checkpoints,
    resolve_adapter,
)
from subspace_lab.recording.witness import Gates, read_gates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from subspace_lab.recording.cores import RankCore


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
        """The configuration that the run was trained with (empty for a foreign adapter).

        `base_dtype` is the one that was used, also where it was left to the machine.
        """
        config = dict(self.description.get("config", {}))
        used = self.description.get("provenance", {}).get("base_dtype")
        if "base_dtype" in config and used is not None:
            names = {dtype: name for name, dtype in DTYPES.items()}
            config["base_dtype"] = names.get(used, used)
        return config

    @property
    def evaluated_split(self) -> str:
        """Which rows the run is evaluated on; test rows, where its training evaluated none.

        A run of another script does not say which rows it was: "held-out".
        """
        otherwise = "test" if "task" in self.config else "held-out"
        split = str(self.config.get("eval_split", otherwise))
        return "test" if split == "none" else split

    @property
    def mask_law(self) -> dict[str, Any] | None:
        """The law of the rank masks, as `MaskLaw`'s fields; None where nothing was masked."""
        return self.description.get("mask")

    @property
    def finished(self) -> bool:
        """Whether training came to its end (adapters of other tools are taken to be finished)."""
        return not self.recorded or self.description.get("status") == "finished"

    @property
    def adapter_folders(self) -> dict[int, Path]:
        """The saved adapters by step, of any kind; `snapshots` are those with factors B and A."""
        folders = checkpoint_folders(self.path) or {
            step: adapter.path for step, adapter in self.snapshots.items()
        }
        return {step: path for step, path in folders.items() if (path / CONFIG_FILE).is_file()}

    @property
    def output_folder(self) -> Path:
        """Where analyses of this run are written."""
        return self.path / "analyses" if self.path.is_dir() else Path("analyses-of") / self.name

    @cached_property
    def modules(self) -> pd.DataFrame:
        """The module table: module, layer, projection, m, n, r, scaling."""
        if self.recorded:
            if "modules" not in self.description:
                raise UserError(f"{self.path / 'run.json'} lists no modules: restore it")
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
            raise UserError(
                f"{self.path} has no metrics.parquet: it is no recorded run, or has just begun"
            )
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
        """Iterate over the cores, some hundred at a time.

        Modules of a batch share a rank; of every module, steps come in ascending order. Where
        cores are computed from snapshots, a module that a snapshot lacks has no core of that step.

        Args:
            steps: only these; None: all.
            modules: only these; None: all.
            motions: also read the displacements since the previous step and since the start
                (snapshots of other tools have none).
        """
        table = self.modules
        chosen = table["module"] if modules is None else modules
        if chunks := self._chunks("cores"):
            yield from recorded_batches(chunks, table, modules=chosen, steps=steps, motions=motions)
        else:
            ranks = dict(zip(table["module"], table["r"], strict=True)) if self.recorded else {}
            yield from computed_batches(self.snapshots, modules=chosen, steps=steps, ranks=ranks)

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


def open_runs(patterns: Collection[str]) -> list[Run]:
    """Open the runs that paths, globs or hub ids name, in order, each once.

    Raises:
        UserError: if a glob matches nothing, or a path is no run.
    """
    paths: dict[Path, str] = {}
    for pattern in patterns:
        names = [pattern]
        if any(character in pattern for character in "*?[") and not Path(pattern).exists():
            names = sorted(
                name
                for name in glob.glob(pattern)  # noqa: PTH207 (absolute patterns)
                if (Path(name) / "run.json").is_file()
            )
            if not names:
                raise UserError(f"no run matches {pattern!r}")
        for name in names:
            paths.setdefault(Path(name).resolve(), name)
    return [Run(name) for name in paths.values()]
