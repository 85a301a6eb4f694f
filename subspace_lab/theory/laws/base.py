"""What every law of gates has in common: when gates are drawn, from what, and how they are scaled.

An adapted layer computes y = W0 x + scaling * B G A x with gates G = f D. A law says how D is drawn
from uniform random numbers: a mask diag(d) with d in {0, 1}^r, other numbers on the diagonal, or a
projector. The rescale says what f is:

    none        f = 1
    keep_prob   f = 1 / keep_prob, the rescale of dropout
    realized    f = 1 / mean(d), of each draw: r / |d|, and 0 where nothing is kept

(`realized` is LyCORIS's `rank_dropout_scale`; on prefix masks it is DyLoRA's alpha / b.) What is
drawn is a pure function of (seed, step, module), and of samples and tokens also of the forward
pass within the step and the data-parallel process.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subspace_lab.errors import UserError
from subspace_lab.theory.laws.schedule import Schedule, matching_pattern, scheduled_keep_prob
from subspace_lab.theory.mask_moments import MaskMoments

Granularity = Literal["step", "sample", "token"]
Rescale = Literal["none", "keep_prob", "realized"]
_RESCALES: dict[str, Rescale] = {name: name for name in get_args(Rescale)}


def rescale_name(rescale: str | bool) -> Rescale:
    """Name a rescale; records of 0.1.0 hold a boolean: whether to rescale by 1 / keep_prob.

    Raises:
        UserError: if there is no such rescale.

    >>> rescale_name(True)
    'keep_prob'
    """
    if isinstance(rescale, bool):
        return "keep_prob" if rescale else "none"
    if rescale not in _RESCALES:
        raise UserError(f"`rescale` must be {_listed(tuple(_RESCALES))}, not {rescale!r}")
    return _RESCALES[rescale]


@dataclass(frozen=True)
class MaskLaw(ABC):
    """How the gates of rank directions are drawn.

    Attributes:
        keep_prob: probability q in (0, 1] that a rank direction is kept.
        granularity: what shares one draw: an optimizer `step`, a `sample`, or a `token`.
        rescale: what gates are multiplied by: `none`, `keep_prob` or `realized`, see above; True
            and False are `keep_prob` and `none`.
        seed: seed of the draws.
        sampling: the law's name in settings and records.
        dwell: steps that use one draw.
        schedule: how keep_prob changes over training: `constant`, `linear`, `early` or `late`, see
            `scheduled_keep_prob`.
        schedule_steps: steps that a schedule takes.
        keep_prob_pattern: keep_prob of modules whose names end with a key, or match it as PEFT's
            `rank_pattern` does.
        shared: whether all modules (of one rank) share one draw.
        binary: whether gates are masks: kept or dropped.
        diagonal: whether gates are one number for each direction, (r,); else a matrix (r, r).
        exchangeable: whether all masks of one size are equally likely.
        independent_gates: whether the directions of a mask are drawn independently.
        rescales: the rescales that make sense.
        uses_keep_prob: whether keep_prob matters to the law.

    Raises:
        UserError: if a setting is out of range, or does not fit the law.
    """

    keep_prob: float
    granularity: Granularity = "step"
    rescale: Rescale | bool = "keep_prob"
    seed: int = 0
    sampling: str = field(init=False)
    dwell: int = field(default=1, kw_only=True)
    schedule: Schedule = field(default="constant", kw_only=True)
    schedule_steps: int | None = field(default=None, kw_only=True)
    keep_prob_pattern: Mapping[str, float] = field(default_factory=dict, kw_only=True, hash=False)
    shared: bool = field(default=False, kw_only=True)
    binary: ClassVar[bool] = True
    diagonal: ClassVar[bool] = True
    exchangeable: ClassVar[bool] = True
    independent_gates: ClassVar[bool] = False
    rescales: ClassVar[tuple[Rescale, ...]] = get_args(Rescale)
    uses_keep_prob: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rescale", rescale_name(self.rescale))
        for name, q in {"keep_prob": self.keep_prob, **self.keep_prob_pattern}.items():
            if not 0 < q <= 1:
                raise UserError(f"`{name}` must lie in (0, 1], not {q}")
        for name, value, names in (
            ("granularity", self.granularity, get_args(Granularity)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in names:
                raise UserError(f"`{name}` must be {_listed(names)}, not {value!r}")
        if self.dwell < 1:
            raise UserError(f"`dwell` must be at least 1, not {self.dwell}")
        if self.schedule != "constant" and (self.schedule_steps or 0) < 1:
            raise UserError(f"schedule {self.schedule} needs `schedule_steps` of at least 1")
        if self.rescale not in self.rescales:
            raise UserError(
                f"`rescale` {self.rescale} makes no sense for `sampling` {self.sampling}: choose "
                f"{_listed(self.rescales)}"
            )
        if not (self.uses_keep_prob or self.constant):
            raise UserError(
                f"`sampling` {self.sampling} has no keep_prob: leave out its schedule and pattern"
            )

    @property
    def factor(self) -> float:
        """What kept directions are multiplied by; nan for `realized`, where each draw has its own.

        A law with a schedule or a pattern has one factor for each step and module: see `at`.
        """
        return {"none": 1.0, "keep_prob": 1 / self.keep_prob}.get(str(self.rescale), float("nan"))

    @property
    def constant(self) -> bool:
        """Whether keep_prob is the same in all steps and modules."""
        return self.schedule == "constant" and not self.keep_prob_pattern

    @property
    def one_factor(self) -> bool:
        """Whether gates are masks times one factor in all steps and modules."""
        return self.binary and self.constant and self.rescale != "realized"

    @property
    def plain(self) -> bool:
        """Whether gates are what most formulas in keep_prob assume.

        That is independent masks that treat all directions alike, times one factor.
        """
        return self.one_factor and self.exchangeable and not self.dependence

    @property
    def dependence(self) -> str:
        """Why draws are not independent ones of one law, in words; empty where they are."""
        if not self.constant:
            return "keep_prob differs between steps or modules"
        if self.dwell > 1:
            return f"one draw serves {self.dwell} steps"
        return "all modules share one draw" if self.shared else ""

    def at(self, step: int, module: str) -> MaskLaw:
        """Give the law of one step in one module: that with the keep_prob it has there."""
        if self.constant:
            return self
        first = self._slot(step) * self.dwell + 1  # a draw stays as it is while it dwells
        q = scheduled_keep_prob(
            self._module_keep_prob(module), first, self.schedule, self.schedule_steps or 1
        )
        return replace(
            self, keep_prob=q, schedule="constant", schedule_steps=None, keep_prob_pattern={}
        )

    def one_draw(self) -> MaskLaw:
        """Give the law of single draws: one for each step and module, of constant keep_prob."""
        return replace(
            self,
            dwell=1,
            schedule="constant",
            schedule_steps=None,
            keep_prob_pattern={},
            shared=False,
        )

    def check_rank(self, rank: int) -> None:  # noqa: B027
        """Raise UserError if the law cannot gate r directions; most can gate any number."""

    def check_modules(self, ranks: Mapping[str, int]) -> None:
        """Raise UserError if a module's rank does not fit, or a pattern names no module."""
        alike = {(rank, self._module_keep_prob(name)): name for name, rank in ranks.items()}
        steps = 1 if self.schedule == "constant" else (self.schedule_steps or 0) + 1
        for (rank, _), module in alike.items():
            for step in range(1, steps + 1):
                self.at(step, module).check_rank(rank)
        for pattern in self.keep_prob_pattern:
            if not any(matching_pattern(module, [pattern]) for module in ranks):
                raise UserError(f"`keep_prob_pattern` names no module: {pattern!r}")

    def step_mask(self, step: int, module: str, rank: int) -> NDArray[np.bool_]:
        """Draw the step mask (r,), True = kept: a pure function of (seed, step, module).

        Raises:
            UserError: if the gates are not masks.
        """
        self._require_masks()
        mask: NDArray[np.bool_] = self._step_draw(step, module, rank)
        return mask

    def step_gates(self, step: int, module: str, rank: int) -> NDArray[np.float64]:
        """Draw the gates of a step, rescaled: (r,), or (r, r) of a law that is not diagonal."""
        drawn = self._step_draw(step, module, rank)
        return np.asarray(self.at(step, module).rescaled(drawn)).astype(np.float64)

    def gates(self, uniform: Any, *, step: int, module: str) -> Any:
        """Turn uniform numbers (..., *noise_shape(r)) into rescaled gates of a step and module."""
        law = self.at(step, module)
        return law.rescaled(law._drawn(uniform, step))

    def draw_seed(self, step: int, module: str, *, call: int, process: int) -> int:
        """Give the seed, 63 bits, of one draw for samples or tokens.

        Args:
            step: optimizer step, from 1.
            module: name of the module.
            call: number of the module's forward pass within the step (its micro-batch), from 1.
            process: rank of the data-parallel process, from 0.
        """
        key = repr((self.seed, self._source(step), self._owner(module), call, process)).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1

    def noise_shape(self, rank: int) -> tuple[int, ...]:
        """Give the shape of the uniform numbers that one draw takes."""
        return (rank,)

    def rescaled(self, drawn: Any) -> Any:
        """Multiply a draw (..., r), an array or a tensor, by its factor f."""
        if self.rescale != "realized":
            return drawn * self.factor
        share = (drawn * 1.0).mean(-1, keepdims=True)
        return drawn / (share + (share == 0))

    @abstractmethod
    def draw(self, uniform: Any) -> Any:
        """Turn independent uniform numbers in [0, 1) into D, before the rescale.

        Args:
            uniform: (..., *noise_shape(r)), an array or a tensor.

        Returns:
            Masks (..., r), bool; of other laws a tensor (..., r) or (..., r, r).
        """

    @abstractmethod
    def moments(self, rank: int) -> MaskMoments:
        """Mean (r,) and covariance (r, r) of the diagonal of D, before the rescale."""

    def gate_moments(self, rank: int) -> MaskMoments:
        """Mean (r,) and covariance (r, r) of the diagonal of G, after the rescale."""
        drawn = self.moments(rank)
        return MaskMoments(self.factor * drawn.mean, self.factor**2 * drawn.covariance)

    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """Distribution of the number of kept directions, as P(0), ..., P(r)."""
        raise self._not_masks()

    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """Distribution of the number of directions that two independent masks both keep."""
        raise self._not_masks()

    def jaccard(self, rank: int) -> float:
        """Mean Jaccard index of two independent masks; that of two empty masks is 1."""
        raise self._not_masks()

    def _drawn(self, uniform: Any, step: int) -> Any:
        """Turn the numbers from which a step draws into D."""
        return self.draw(uniform)

    def _step_draw(self, step: int, module: str, rank: int) -> Any:
        """Draw D of a step.

        Philox counters (Salmon et al. 2011) make it random access: no state is carried from step
        to step, so micro-batches, data-parallel ranks and resumed runs agree by construction.
        """
        name = hashlib.sha256(self._owner(module).encode()).digest()[:8]
        stream = np.random.Philox(
            key=np.array([self.seed, int.from_bytes(name, "little")], dtype=np.uint64),
            counter=np.array([0, 0, 0, self._source(step)], dtype=np.uint64),
        )
        law = self.at(step, module)
        return law._drawn(np.random.Generator(stream).random(law.noise_shape(rank)), step)

    def _slot(self, step: int) -> int:
        """Number the draws over training, from 0: each serves `dwell` steps."""
        return (step - 1) // self.dwell

    def _source(self, step: int) -> int:
        """Say which numbers a step draws from."""
        return self._slot(step) + 1

    def _owner(self, module: str) -> str:
        return "" if self.shared else module

    def _module_keep_prob(self, module: str) -> float:
        pattern = matching_pattern(module, list(self.keep_prob_pattern))
        return self.keep_prob if pattern is None else self.keep_prob_pattern[pattern]

    def _require_masks(self) -> None:
        if not self.binary:
            raise self._not_masks()

    def _not_masks(self) -> UserError:
        return UserError(
            f"gates of `sampling` {self.sampling} are not masks: no direction is kept or dropped"
        )


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
