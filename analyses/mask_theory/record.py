"""What a run recorded about its modules of one rank, in the arrays that predictions need."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from analyses.mask_theory.optimizer import Optimizer, optimizer_of
from subspace_lab.errors import UserError
from subspace_lab.linalg.rank_core import Frame, RankCore
from subspace_lab.runs.observed_gates import Gates
from subspace_lab.runs.run import Run
from subspace_lab.runs.steps import ranges
from subspace_lab.theory.mask_law import MaskLaw

MAX_CORES = 4096
"""Spectra and angles are taken at evenly spread steps, of at most this many cores in all."""

Value = TypeVar("Value")


class Directions(NamedTuple):
    """How every rank direction of one side moved, step by step; `size` etc. are (T, M, r).

    Attributes:
        size: norm of the direction (of a_i or b_i) after the step.
        step: norm of its displacement in the step.
        start: norm of its displacement since step 0.
        along: inner product of the direction after the step with its displacement in the step.
    """

    size: NDArray[np.float64]
    step: NDArray[np.float64]
    start: NDArray[np.float64]
    along: NDArray[np.float64]


class Displacements(NamedTuple):
    """The displacements of A's rows and B's columns in consecutive steps 1..T."""

    steps: NDArray[np.int64]
    row: Directions
    column: Directions


@dataclass(frozen=True, eq=False)
class Group:
    """The modules of one rank.

    Attributes:
        run: the run.
        modules: their rows (M) of the module table.
        steps: steps whose cores may be used; None: all. All masks are always used.
        lora: the modules of that rank of a LoRA run to compare with; None: there is none.
    """

    run: Run
    modules: pd.DataFrame
    steps: Collection[int] | None = None
    lora: Group | None = None

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.modules["r"].iloc[0])

    @property
    def names(self) -> list[str]:
        """The modules' names."""
        return list(self.modules["module"])

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration (empty where it is not known)."""
        return self.run.config

    @cached_property
    def law(self) -> MaskLaw | None:
        """The law that the run says its masks followed; None for a run without masks."""
        return self.run.mask_law

    @cached_property
    def optimizer(self) -> Optimizer | None:
        """The optimizer; None where it is not known, or not covered by theory."""
        return optimizer_of(self.run)

    def learning_rates(self, steps: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Give the learning rates (T,) of steps; None unless all were logged."""
        rates = self._logged("learning_rate", steps)
        return None if np.isnan(rates).any() else rates

    def gradient_norms(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Give the norms (T,) of the whole gradient before clipping; nan where not logged."""
        return self._logged("gradient_norm", steps)

    def _logged(self, name: str, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        table = self.run.metrics.set_index("step").reindex(index=steps, columns=[name])
        return table[name].to_numpy(dtype=float)

    @cached_property
    def mask_steps(self) -> NDArray[np.int64]:
        """The steps (T,) whose masks were recorded."""
        return np.array(self.run.mask_steps, dtype=np.int64)

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """All step masks (T, M, r), True = kept; None where there are none."""
        if self.law is None or not len(self.mask_steps):
            return None
        same_rank = self.run.modules[self.run.modules["r"] == self.rank]
        return self.run.masks_of_rank(self.rank)[1][:, same_rank["module"].isin(self.names)]

    def masks_of(self, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Give the masks (T, M, r) of steps that have one; all True in a run without masks.

        Raises:
            UserError: if the mask of a step is missing.
        """
        if self.masks is None:
            return np.ones((len(steps), len(self.modules), self.rank), dtype=bool)
        if missing := steps[~np.isin(steps, self.mask_steps)].tolist():
            raise UserError(
                f"{self.run.path} lacks the masks of the steps {ranges(missing)}: restore the "
                f"missing chunk in {self.run.path / 'masks'}"
            )
        return self.masks[np.searchsorted(self.mask_steps, steps)]

    @cached_property
    def gates(self) -> list[Gates]:
        """The observed gates of these modules."""
        return [observed for observed in self.run.gates if observed.module in set(self.names)]

    @cached_property
    def core_steps(self) -> list[int]:
        """The steps with cores that may be used: those before training diverged."""
        return [step for step, finite in self.finite.items() if finite]

    @cached_property
    def finite(self) -> dict[int, bool]:
        """Whether the weights of all modules were finite, by step with cores."""
        chosen = self.run.steps if self.steps is None else self.steps
        finite = dict.fromkeys(sorted(set(chosen).intersection(self.run.steps)), True)
        for batch in self.run.cores(steps=finite.keys(), modules=self.names, displacements=False):
            for step, modules in zip(batch.steps.tolist(), batch.finite, strict=True):
                finite[step] &= bool(modules.all())
        return finite

    def evidence(self, tests: str) -> str:
        """Name what tests of the masks drawn and of the initialization rest on, by its hash.

        Runs that share a seed share masks or first weights, and are no further evidence there.
        """
        if tests == "masks drawn" and self.masks is not None:
            values: NDArray[Any] = self.masks
        elif tests == "initialization" and self.core_steps[:1] == [0]:
            values = self.core(0).row.R.numpy()
        else:
            return ""
        return hashlib.sha256(values.tobytes()).hexdigest()[:12]

    @cached_property
    def cores(self) -> tuple[NDArray[np.int64], RankCore]:
        """Cores of evenly spread steps: the steps (T,), and one batch (T, M)."""
        steps = np.array(self.core_steps)
        count = max(2, MAX_CORES // len(self.modules))
        if len(steps) > count:
            steps = steps[np.linspace(0, len(steps) - 1, count).round().astype(int)]
        return steps, self._read(steps.tolist(), displacements=self.run.recorded)

    def core(self, step: int) -> RankCore:
        """Give the cores (M,) of one step."""
        return self._read([step], displacements=False)[0]

    def _read(self, steps: list[int], *, displacements: bool) -> RankCore:
        """Read cores into one batch (T, M)."""
        of_step: dict[int, list[RankCore]] = {step: [] for step in steps}
        for batch in self.run.cores(steps=steps, modules=self.names, displacements=displacements):
            for place, step in enumerate(batch.steps.tolist()):
                of_step[step].append(batch.core[place])
        return RankCore.stack([RankCore.cat(parts) for parts in of_step.values()])

    @cached_property
    def displacements(self) -> Displacements | None:
        """How the directions moved; None unless cores of all steps 1, 2, ... were recorded."""
        steps = [step for step in self.core_steps if step > 0]
        if not self.run.recorded or not steps or steps != list(range(1, len(steps) + 1)):
            return None
        rows, columns = [], []
        for batch in self.run.cores(steps=steps, modules=self.names):
            rows.append(_directions(batch.core.row))
            columns.append(_directions(batch.core.column))
        sides = (zip(*parts, strict=True) for parts in (rows, columns))
        joined = (Directions(*map(np.concatenate, side)) for side in sides)
        return Displacements(np.array(steps), *joined)

    @cached_property
    def starts_at_zero(self) -> bool:
        """Whether B = 0 at step 0 (not so for PiSSA, MiLoRA, or an adapter trained before)."""
        return 0 in self.run.steps and not bool(self.core(0).column.R.any())

    @property
    def starts_at_random(self) -> bool:
        """Whether A was random at step 0, as LoRA's is; full fine-tuning is recorded with A = I."""
        known = self.config.get("method") != "full" and not self.config.get("peft_config")
        return known and self.starts_at_zero


def groups_of(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
    lora: Run | None = None,
) -> list[Group]:
    """Sort a run's modules by rank, and those of the LoRA run to compare with."""
    plain = groups_of(lora, steps=steps, modules=modules) if lora else []
    of_rank = {group.rank: group for group in plain}
    table = run.modules
    if modules is not None:
        table = table[table["module"].isin(modules)]
    return [
        Group(run, part.reset_index(drop=True), steps, of_rank.get(part["r"].iloc[0]))
        for _, part in table.groupby("r", sort=False)
    ]


def once(quantity: Callable[[Group], Value]) -> Callable[[Group], Value]:
    """Compute a quantity of a group once, and keep it with the group for other predictions."""

    @functools.wraps(quantity)
    def kept(group: Group) -> Value:
        memory: dict[Any, Value] = group.__dict__.setdefault("memory", {})
        if quantity not in memory:
            memory[quantity] = quantity(group)
        return memory[quantity]

    return kept


def first_true(happened: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the first True along the first axis; its length where there is none."""
    places: NDArray[np.int64] = np.where(happened.any(0), happened.argmax(0), len(happened))
    return places


def _directions(frame: Frame) -> Directions:
    previous, start = frame.displacement("previous"), frame.displacement("start")
    return Directions(
        size=frame.norms.numpy(),
        step=torch.linalg.vector_norm(previous.coordinates, dim=-2).numpy(),
        start=torch.linalg.vector_norm(start.coordinates, dim=-2).numpy(),
        along=(frame.R * previous.along).sum(-2).numpy(),
    )
