"""A run, read back: recorded by this toolkit, or adapters that another tool trained.

`Run(path)` opens a run directory (also one that is still being written), a PEFT adapter folder, a
Trainer output folder with `checkpoint-*` folders, or a hub id. Analyses ask it for modules, steps,
cores, masks and factors, and need not know which of these it is.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.linalg.factors import Factors
from subspace_lab.linalg.rank_core import RankCore
from subspace_lab.module_table import MODULE_COLUMNS
from subspace_lab.peft_files.checkpoints import checkpoint_folders, open_any, open_checkpoints
from subspace_lab.peft_files.configuration import CONFIG_FILE
from subspace_lab.runs.at_a_glance import (
    facts_html,
    mask_text,
    modules_text,
    steps_text,
    training_text,
)
from subspace_lab.runs.chunks import Kind, list_chunks, read_masks
from subspace_lab.runs.core_batches import (
    CoreBatch,
    PendingBatch,
    computed_batches,
    recorded_batches,
)
from subspace_lab.runs.described import Described
from subspace_lab.runs.left_out import coverage, left_out
from subspace_lab.runs.metrics import evaluations, read_metrics
from subspace_lab.runs.observed_gates import Gates, read_gates


def name_of(path: Path) -> str:
    """Name a run by its folder, and the snapshots of one also by the run that they are of.

    >>> name_of(Path("runs/lora")), name_of(Path("runs/restarts/snapshots"))
    ('lora', 'restarts/snapshots')
    """
    return "/".join(path.parts[-2:] if path.name == "snapshots" else path.parts[-1:])


class Run(Described):
    """Reads one run.

    Args:
        path: a run directory, a PEFT adapter folder, a Trainer output folder, or a hub id.

    Attributes:
        snapshots: the saved adapters with factors B and A, by step.
        not_finite: the modules, by step, in which nan or infinities were read.

    Raises:
        UserError: if `path` is none of these.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = name_of(self.path.resolve())
        file = self.path / "run.json"
        recorded = file.is_file()
        super().__init__(files.read_json(file) if recorded else {}, recorded=recorded)
        self.snapshots = open_checkpoints(self.path / "snapshots") if recorded else open_any(path)
        self.not_finite: dict[int, set[str]] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        facts = {
            "trained": training_text(self.config),
            "status": self.status,
            "rank masks": mask_text(self.mask_law),
            "modules": modules_text(self.modules),
            "cores": steps_text(self.core_steps),
            "masks": steps_text(self.mask_steps),
            "snapshots": steps_text(sorted(self.snapshots)),
        }
        return facts_html(str(self.path), facts)

    @property
    def adapter_folders(self) -> dict[int, Path]:
        """The saved adapters by step, of any kind; `snapshots` are those with factors B and A."""
        folders = checkpoint_folders(self.path) or {
            step: adapter.path for step, adapter in self.snapshots.items()
        }
        if root := self.snapshots.root:
            folders |= {root.step: root.folder}
        return {step: path for step, path in folders.items() if (path / CONFIG_FILE).is_file()}

    @property
    def final_step(self) -> int:
        """The step of the adapter that the run ended with.

        It is the last one, or that at the root of a Trainer's output folder (the best, maybe).

        Raises:
            UserError: if the run has no saved adapters.
        """
        if root := self.snapshots.root:
            return root.step
        if not self.adapter_folders:
            raise UserError(f"{self.path} has no saved adapters: record them with `snapshots`")
        return max(self.adapter_folders)

    @property
    def final_snapshot(self) -> int:
        """The step of the final adapter, or the last that can be read as factors."""
        return self.final_step if self.final_step in self.snapshots else max(self.snapshots)

    @property
    def left_out(self) -> pd.DataFrame:
        """The parts of the saved adapters that are not analyzed, and why; see `runs.left_out`."""
        return left_out(self.snapshots, modules=self.modules["module"])

    @property
    def coverage(self) -> tuple[int, int]:
        """How many trained parameters of the last saved adapter are analyzed, and of how many."""
        return coverage(self.snapshots)

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
        return self.snapshots[max(self.snapshots)].modules[MODULE_COLUMNS].reset_index(drop=True)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step: step, loss, learning_rate, gradient_norm, ..., eval_*.

        Raises:
            UserError: if the run has none.
        """
        return read_metrics(self.path)

    @property
    def evaluations(self) -> pd.DataFrame:
        """The rows of `metrics` whose step was evaluated; a loss that was not finite is nan."""
        return evaluations(self.metrics)

    @property
    def steps(self) -> list[int]:
        """The steps that have cores: recorded ones, else those of the snapshots."""
        return self.core_steps or sorted(self.snapshots)

    @property
    def core_steps(self) -> list[int]:
        """The steps whose cores were recorded, with the displacements since earlier steps."""
        return self._recorded_steps("cores")

    @property
    def mask_steps(self) -> list[int]:
        """The steps whose masks were recorded."""
        return self._recorded_steps("masks")

    @property
    def steps_without_mask(self) -> list[int]:
        """The steps whose masks are missing from the record of a run that has one mask a step."""
        law = self.mask_law
        if law is None or law.granularity != "step" or not law.binary or self.gates_chosen:
            return []
        recorded = self.mask_steps
        last = max([*recorded, *self.core_steps], default=0)
        return sorted(set(range(1, last + 1)) - set(recorded))

    @property
    def gates(self) -> list[Gates]:
        """The gates that were observed at some layers in some training steps."""
        return read_gates(self.path)

    def masks_of_rank(self, rank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return all recorded masks of the modules of rank r: steps (T,) and masks (T, M, r).

        Modules are in the order of `modules`; True = kept.

        Raises:
            UserError: if the run has no step masks, or they are missing.
        """
        chunks = list_chunks(self.path, "masks")
        if not chunks and self.steps_without_mask:
            raise UserError(f"{self.path / 'masks'} was deleted: restore it")
        law = self.mask_law
        if not chunks and law is not None and not law.binary:
            raise UserError(
                f"{self.path} has no step masks: its gates are {law.sampling}, see Run.step_gates"
            )
        if not chunks:
            raise UserError(
                f"{self.path} has no step masks: train with `method` droplora and `granularity` "
                "step"
            )
        return read_masks(chunks, rank)

    def masks(self, module: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return all recorded masks of a module: steps (T,) and masks (T, r), True = kept.

        Raises:
            UserError: if the run has no step masks, or no such module.
        """
        row, place = self._place(module)
        steps, masks = self.masks_of_rank(int(row.r))
        return steps, masks[:, place]

    def mask(self, step: int, module: str) -> NDArray[np.bool_]:
        """Return the mask (r,) under which optimizer step `step` was taken, True = kept.

        Raises:
            UserError: if that step's mask was not recorded.
        """
        steps, masks = self.masks(module)
        places = np.flatnonzero(steps == step)
        if not places.size:
            raise UserError(f"{self.path} has no mask of step {step}: see Run.mask_steps")
        return np.asarray(masks[places[0]])

    def step_gates(self, step: int) -> dict[str, NDArray[np.float64]]:
        """Give the gates of optimizer step `step` by module, rescaled: (r,), or (r, r) matrices.

        They follow from the run's law, also where gates are not masks and none were recorded.

        Raises:
            UserError: if the run has no step gates.
        """
        law = self.mask_law
        if law is None or law.granularity != "step":
            raise UserError(f"{self.path} has no gates that all rows of a step share")
        ranks = zip(self.modules["module"], self.modules["r"], strict=True)
        return {name: law.step_gates(step, name, int(rank)) for name, rank in ranks}

    def core(self, step: int, module: str) -> RankCore:
        """Return the rank core of one module at one step, without batch dimensions.

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
        displacements: bool = True,
    ) -> Iterator[CoreBatch]:
        """Iterate over the cores, some hundred at a time.

        Modules of a batch share a rank; of every module, steps come in ascending order. Where
        cores are computed from snapshots, a module that a snapshot lacks has no core of that step.

        Args:
            steps: only these; None: all.
            modules: only these; None: all.
            displacements: also read the displacements since the previous step and since the start
                (snapshots of other tools have none).
        """
        for pending in self.pending_cores(
            steps=steps, modules=modules, displacements=displacements
        ):
            yield pending.load()

    def pending_cores(
        self,
        *,
        steps: Collection[int] | None = None,
        modules: Collection[str] | None = None,
        displacements: bool = True,
    ) -> Iterator[PendingBatch]:
        """List the batches of `cores`, to be loaded in threads; arguments as there."""
        table = self.modules
        chosen = table["module"] if modules is None else modules
        if chunks := list_chunks(self.path, "cores"):
            batches = recorded_batches(
                chunks, table, modules=chosen, steps=steps, displacements=displacements
            )
        else:
            ranks = dict(zip(table["module"], table["r"], strict=True)) if self.recorded else {}
            batches = computed_batches(self.snapshots, modules=chosen, steps=steps, ranks=ranks)
        for batch in batches:
            yield PendingBatch(batch.count, functools.partial(self._load, batch))

    def _load(self, pending: PendingBatch) -> CoreBatch:
        """Load a batch, and note which of its cores are not finite."""
        batch = pending.load()
        for row, module in np.argwhere(~batch.finite):
            self._note_not_finite(int(batch.steps[row]), batch.modules["module"].iloc[module])
        return batch

    def factors(self, step: int, module: str) -> Factors:
        """Return B (m, r), A (r, n) and the scaling of a module, from the snapshot at `step`.

        Raises:
            UserError: if there is no snapshot of that step.
        """
        if step not in self.snapshots:
            raise UserError(
                f"{self.path} has no snapshot of step {step}, only of {sorted(self.snapshots)}: "
                "record more with `snapshots`"
            )
        factors = self.snapshots[step].factors(module)
        if not factors.finite:
            self._note_not_finite(step, module)
        return factors

    def _note_not_finite(self, step: int, module: str) -> None:
        self.not_finite.setdefault(step, set()).add(module)

    def _place(self, module: str) -> tuple[Any, int]:
        """Find a module's row of the table and its place among the modules of its rank."""
        rows = self.modules[self.modules["module"] == module]
        if rows.empty:
            raise UserError(f"{self.path} has no module {module!r}: see Run.modules")
        row = rows.iloc[0]
        same_rank = self.modules[self.modules["r"] == row.r]
        return row, int(np.flatnonzero(same_rank["module"] == module)[0])

    def _recorded_steps(self, kind: Kind) -> list[int]:
        return [int(step) for chunk in list_chunks(self.path, kind) for step in chunk.steps]
