"""What an experiment trains: arms x regimes x seeds, as its file in `designs/` says.

    title: penalty or noise?
    regimes: [A, B]                       # names of bench.yaml, or of fields given here
    arms: [LoRA, step, noise-only]        # names of bench.yaml
    equal_rate: [step]                    # arms that are also trained at the baseline's rate
    primary: [[step, LoRA]]               # primary comparisons, in every regime: first minus second

What a file does not say is as in `designs/bench.yaml`, which all experiments share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from subspace_lab.errors import UserError

Rates = Mapping[tuple[str, str], float]
"""The learning rate chosen for each regime and arm."""
DESIGNS = Path(__file__).parent / "designs"
BENCH = "bench"


@dataclass(frozen=True)
class Settings:
    """Presets and fields of `TrainConfig` of an arm or a regime.

    Attributes:
        presets: names, later ones win.
        fields: win over the presets.
        rates_of: the arm or regime whose learning rates these have; None: its own.
    """

    presets: tuple[str, ...]
    fields: Mapping[str, Any]
    rates_of: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a design.

    Attributes:
        regime: name of its regime.
        arm: name of its arm.
        learning_rate: peak rate.
        fields: the seeds, by field.
    """

    regime: str
    arm: str
    learning_rate: float
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name the run's folder.

        >>> Cell("A", "step", 0.002, {"seed": 10}).name
        'A,step,rate=0.002,seed=10'
        """
        seeds = "".join(f",{name}={value}" for name, value in self.fields.items())
        return f"{self.regime},{self.arm},rate={self.learning_rate:g}{seeds}"


@dataclass(frozen=True)
class Design:
    """An experiment.

    Attributes:
        name: of its file.
        title: its question.
        regimes: settings by name.
        arms: settings by name.
        arms_of: the arms of each regime.
        baseline: the arm that others are compared with.
        baseline_of: the arm that an arm's ranks are compared with, where it is another one.
        rates: the learning rates from which each arm's own is chosen.
        rate_seeds: seeds of that choice.
        seeds: seeds of the final cells.
        primary: pairs of arms whose difference decides.
        secondary: further pairs of arms that are compared.
        equal_rate: arms that are also trained at the baseline's rate.
        baseline_rates: at which the baseline is also trained.
        fields: of the final runs.
        rate_fields: of the runs from which rates are chosen, which experiments share.
        rates_of: the arm whose own rate all arms have; None: each its own.
        repeat: values of other fields, for each seed, by regime and arm.
        primary_regimes: where the primary differences decide.
        slope: regimes by the value of a setting, over which the difference of `primary` arms has a
            slope that decides, too.
        measures: what else is measured of the runs: `ranks` of the updates, these and what
            `theory` says of the factors, or several ways of `inference`.
    """

    name: str
    title: str
    regimes: Mapping[str, Settings]
    arms: Mapping[str, Settings]
    arms_of: Mapping[str, Sequence[str]]
    baseline: str
    rates: Sequence[float]
    rate_seeds: Sequence[int]
    seeds: Sequence[int]
    primary: Sequence[tuple[str, str]] = ()
    secondary: Sequence[tuple[str, str]] = ()
    equal_rate: Sequence[str] = ()
    baseline_rates: Sequence[float] = ()
    baseline_of: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    rate_fields: Mapping[str, Any] = field(default_factory=dict)
    rates_of: str | None = None
    repeat: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]] = field(default_factory=dict)
    primary_regimes: Sequence[str] = ()
    slope: Mapping[str, float] = field(default_factory=dict)
    measures: Literal["ranks", "theory", "inference"] | None = None

    def rate_cells(self) -> list[Cell]:
        """List the runs from which the learning rates are chosen."""
        places = dict.fromkeys(
            self.rate_place(regime, arm) for regime in self.arms_of for arm in self.arms_of[regime]
        )
        places |= dict.fromkeys(self.rate_place(regime, self.baseline) for regime in self.arms_of)
        return [
            Cell(regime, arm, rate, {"seed": seed})
            for regime, arm in places
            if "learning_rate" not in self.arms[arm].fields
            for rate in self.rates
            for seed in self.rate_seeds
        ]

    def rate_place(self, regime: str, arm: str) -> tuple[str, str]:
        """Give the regime and arm whose own rate an arm has in a regime."""
        shared = self.rates_of or self.arms[arm].rates_of
        return self.regimes[regime].rates_of or regime, shared or arm

    def final_cells(self, own: Rates) -> list[Cell]:
        """List the runs that are compared, each once.

        Args:
            own: the chosen rate of each place.
        """
        cells = {
            cell.name: cell
            for regime, arms in self.arms_of.items()
            for arm in arms
            for rate in self.rates_at(regime, arm, own).values()
            for cell in self._repeated(regime, arm, rate)
        }
        return list(cells.values())

    def own_cells(self, own: Rates) -> list[Cell]:
        """List those of the final runs that are at their arm's own rate."""
        return [
            cell
            for cell in self.final_cells(own)
            if cell.learning_rate == self.rates_at(cell.regime, cell.arm, own)["own"]
        ]

    def first_cells(self, own: Rates) -> dict[tuple[str, str, int], Cell]:
        """Give the first run at its arm's own rate of each regime, arm and seed."""
        first: dict[tuple[str, str, int], Cell] = {}
        for cell in self.own_cells(own):
            first.setdefault((cell.regime, cell.arm, cell.fields["seed"]), cell)
        return first

    def rates_at(self, regime: str, arm: str, own: Rates) -> dict[str, float]:
        """Give an arm's rates: `own`, `equal` to the baseline's, and others of the baseline."""
        fixed = self.arms[arm].fields.get("learning_rate")
        if fixed is not None:
            return {"own": float(fixed)}
        rates = {"own": own[self.rate_place(regime, arm)]}
        if arm in self.equal_rate or arm == self.baseline:
            rates["equal"] = own[self.rate_place(regime, self.baseline)]
        if arm == self.baseline:
            rates |= {f"{rate:g}": rate for rate in self.baseline_rates}
        return rates

    def _repeated(self, regime: str, arm: str, rate: float) -> Iterator[Cell]:
        repeated = self.repeat.get(regime, {}).get(arm, {})
        for seed in self.seeds:
            for values in itertools.product(*repeated.values()):
                fields = {"seed": seed, **dict(zip(repeated, values, strict=True))}
                yield Cell(regime, arm, rate, fields)

    def settings(self, cell: Cell) -> tuple[list[str], dict[str, Any]]:
        """Give the presets and the fields of a run."""
        regime, arm = self.regimes[cell.regime], self.arms[cell.arm]
        chooses_rate = cell.fields["seed"] in self.rate_seeds
        shared = self.rate_fields if chooses_rate else self.fields
        fields = {**shared, **regime.fields, **arm.fields, **cell.fields}
        return [*regime.presets, *arm.presets], {**fields, "learning_rate": cell.learning_rate}


def read_design(name: str, *, smoke: bool = False) -> Design:
    """Read an experiment's file.

    Args:
        name: such as `x1`.
        smoke: make it small: 4 steps, one rate, two seeds, one regime (or those of a slope), and no
            arms but the baseline, those of primary comparisons, and one more.

    Raises:
        UserError: if there is no such experiment.
    """
    known = sorted(file.stem for file in DESIGNS.glob("*.yaml") if file.stem != BENCH)
    if name not in known:
        raise UserError(f"there is no experiment {name!r}: the experiments are {', '.join(known)}")
    shared, own = (
        yaml.safe_load((DESIGNS / f"{n}.yaml").read_text("utf-8")) for n in (BENCH, name)
    )
    content = {**shared, **own}
    listed = content["regimes"]
    regimes = listed if isinstance(listed, dict) else {n: shared["regimes"][n] for n in listed}
    more = content.get("more_arms", {})
    design = Design(
        name=name,
        title=content["title"],
        regimes={n: _settings(given) for n, given in {**shared["regimes"], **regimes}.items()},
        arms={n: _settings(given) for n, given in shared["arms"].items()},
        arms_of={regime: [*content["arms"], *more.get(regime, [])] for regime in regimes},
        baseline=content["baseline"],
        rates=content["rates"],
        rate_seeds=content["rate_seeds"],
        seeds=content["seeds"],
        primary=[(first, second) for first, second in content.get("primary", [])],
        secondary=[(first, second) for first, second in content.get("secondary", [])],
        equal_rate=content.get("equal_rate", []),
        baseline_rates=content.get("baseline_rates", []),
        baseline_of=content.get("baseline_of", {}),
        fields={**shared["fields"], **content["fields"]},
        rate_fields=shared["fields"],
        rates_of=content.get("rates_of"),
        repeat=content.get("repeat", {}),
        primary_regimes=content.get("primary_regimes", list(regimes)),
        slope=content.get("slope", {}),
        measures=content.get("measures"),
    )
    return _small(design) if smoke else design


def part_of(design: Design, *, regimes: Sequence[str] | None, arms: Sequence[str] | None) -> Design:
    """Keep some regimes, and some arms beside what they are compared with; None: all.

    Raises:
        UserError: if a regime or an arm is not one of the design.
    """
    known = {
        "regime": list(design.arms_of),
        "arm": sorted({*itertools.chain(*design.arms_of.values())}),
    }
    for kind, names in (("regime", regimes), ("arm", arms)):
        if unknown := [name for name in names or () if name not in known[kind]]:
            raise UserError(
                f"{design.name} has no {kind} {unknown[0]!r}: choose among {', '.join(known[kind])}"
            )
    kept_arms = {design.baseline, *(arms or ())}
    kept_arms |= {design.baseline_of[arm] for arm in kept_arms & design.baseline_of.keys()}
    kept = {
        regime: [arm for arm in of_regime if arms is None or arm in kept_arms]
        for regime, of_regime in design.arms_of.items()
        if regimes is None or regime in regimes
    }
    slope = design.slope if design.slope.keys() <= kept.keys() else {}
    return replace(design, arms_of=kept, slope=slope)


def with_data(design: Design, folder: Path) -> Design:
    """Let all runs read their task from a data folder."""
    given = {"data_dir": str(folder)}
    return replace(
        design, fields={**design.fields, **given}, rate_fields={**design.rate_fields, **given}
    )


def _settings(given: Mapping[str, Any]) -> Settings:
    fields = dict(given)
    if "peft_config" in fields:
        fields["peft_config"] = str(DESIGNS / fields["peft_config"])
    presets = tuple(fields.pop("presets", ()))
    rates_of = fields.pop("rates_of", None)
    return Settings(presets, fields, rates_of)


def _small(design: Design) -> Design:
    few = {design.baseline, "step", *itertools.chain.from_iterable(design.primary)}
    first = next(iter(design.arms_of))
    arms_of = {
        regime: [arm for arm in arms if arm in few]
        for regime, arms in design.arms_of.items()
        if regime in (design.slope or [first])
    }
    repeat = {
        regime: {
            arm: {name: values[:2] for name, values in of_arm.items()}
            for arm, of_arm in arms.items()
        }
        for regime, arms in design.repeat.items()
    }
    small = {"steps": 4, "eval_size": 10, "test_size": 10, "eval_every": 2}
    regimes = {
        name: replace(regime, fields={**regime.fields, **small})
        for name, regime in design.regimes.items()
    }
    return replace(
        design,
        regimes=regimes,
        arms_of=arms_of,
        rates=design.rates[:1],
        baseline_rates=(),
        rate_seeds=design.rate_seeds[:1],
        seeds=design.seeds[:2],
        repeat=repeat,
    )
