"""Planted scores over a grid of learning rates: which rate is chosen, what one rate would say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.comparisons.pairing import read_configurations
from analyses.comparisons.rates import by_method, own_rate
from analyses.learning_rates import ANALYSIS, compute
from analyses.learning_rates.layout import as_markdown
from analyses.paired_differences import compute as paired_differences
from analyses.paired_differences.layout import as_markdown as differences_as_markdown
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from tests.analyses.scored_runs import ROWS, write_run

RATES, SEEDS = (1e-3, 2e-3, 4e-3), (0, 1, 2)
# Of methods that are equally good at their best rates, a factor of 2 apart: loss on test examples,
# and on validation examples, by rate. The last rate of PiSSA is best on test examples only.
TEST = {"lora": (0.9, 0.5, 1.3), "pissa": (0.5, 0.9, 0.4)}
VALIDATION = {"lora": (0.9, 0.5, 1.3), "pissa": (0.5, 0.9, 1.7)}


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return plant(tmp_path, TEST, VALIDATION)


def plant(
    folder: Path,
    test: dict[str, tuple[float, ...]],
    validation: dict[str, tuple[float, ...]] | None,
) -> list[Run]:
    """Write runs whose losses are the planted ones plus what seeds and examples add to all."""
    rng = np.random.default_rng(0)
    of_seeds, of_examples = 0.02 * rng.normal(size=len(SEEDS)), 0.1 * rng.normal(size=ROWS)
    found = []
    for method, losses in test.items():
        for place, rate in enumerate(RATES[: len(losses)]):
            for seed in SEEDS:
                own = 0.01 * rng.normal()
                loss = losses[place] + of_seeds[seed] + own
                known = None if validation is None else validation[method][place] + own
                found.append(
                    write_run(
                        folder / f"{method}-{rate:g}-{seed}",
                        seed=seed,
                        method=method,
                        learning_rate=rate,
                        losses={"flip": loss + of_examples},
                        validation=None if known is None else (1 - known / 2, known),
                    )
                )
    return found


def row(table: pd.DataFrame, **wanted: object) -> pd.Series:
    (found,) = [r for _, r in table.iterrows() if all(r[k] == v for k, v in wanted.items())]
    return found


def losses_of(folder: Path, method: str, rate: float) -> np.ndarray:
    """Read mean losses by seed from the files."""
    return np.array(
        [
            pd.read_parquet(folder / f"{method}-{rate:g}-{seed}/evaluations/flip.parquet")[
                "loss"
            ].mean()
            for seed in SEEDS
        ]
    )


def test_validation_chooses_the_rate_and_test_examples_report(runs, tmp_path):
    table = compute(runs)
    for method, name, rate in (("lora", "LoRA", 2e-3), ("pissa", "PiSSA", 1e-3)):
        own = row(table, configuration=name, measure="loss", rates="own")
        assert own["learning_rate"] == rate  # not PiSSA's best on test examples, 4e-3
        assert own["mean"] == pytest.approx(losses_of(tmp_path, method, rate).mean())
    assert own["rate_ratio"] == 0.5 and own["baseline_rate"] == 2e-3
    assert (own["lowest_rate"], own["highest_rate"]) == (1e-3, 1e-3)
    assert own["at_edge"]
    assert not row(table, configuration="LoRA", measure="loss", rates="own")["at_edge"]


def test_equal_rates_say_what_own_rates_do_not(runs, tmp_path):
    table = compute(runs)
    pissa = table[(table["configuration"] == "PiSSA") & (table["measure"] == "loss")]
    for rate in RATES:
        found = row(pissa, rates="equal", learning_rate=rate)
        difference = losses_of(tmp_path, "pissa", rate) - losses_of(tmp_path, "lora", rate)
        expected = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
        assert found["difference"] == pytest.approx(difference.mean())
        assert found["difference_low"] == pytest.approx(expected.low)
    own = row(pissa, rates="own")
    difference = losses_of(tmp_path, "pissa", 1e-3) - losses_of(tmp_path, "lora", 2e-3)
    expected = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert own["difference"] == pytest.approx(difference.mean())
    assert own["difference_high"] == pytest.approx(expected.high)
    text = as_markdown(table)
    line = "| PiSSA | 0.001 (edge) (0.001 to 0.001) | 0.5 | 0.001, 0.004 | 0.002 |  | open |"
    assert line in text
    assert "At the edge of the grid" in text
    assert text.count("**") == 2 * 2 * 2  # one bold rate per method and measure


def test_single_seeds_may_choose_other_rates(tmp_path):
    values = np.full(ROWS, 0.5)
    best = {0: 1e-3, 1: 2e-3, 2: 2e-3}
    runs = [
        write_run(
            tmp_path / f"{rate:g}-{seed}", seed=seed, learning_rate=rate, losses={"flip": values},
            validation=(0.5, 0.1 if rate == best[seed] else 0.4),
        )
        for rate in RATES
        for seed in SEEDS
    ]  # fmt: skip
    runs += plant(tmp_path / "pissa", {"pissa": TEST["pissa"]}, VALIDATION)
    own = row(compute(runs), configuration="LoRA", measure="loss", rates="own")
    assert own["learning_rate"] == 2e-3
    assert (own["lowest_rate"], own["highest_rate"]) == (1e-3, 2e-3)


def test_a_diverged_rate_is_never_chosen(tmp_path):
    nan = math.nan
    runs = plant(tmp_path, {"lora": (0.5, nan)}, {"lora": (5.0, nan)})
    (of_rates,) = by_method(read_configurations(runs)).values()
    assert own_rate(of_rates, "loss") == own_rate(of_rates, "accuracy") == RATES[0]


def test_without_a_choice_the_reason_is_said(runs, tmp_path):
    once = plant(tmp_path / "more", {"dora": (0.5,)}, {"dora": (0.5,)})
    table = compute([*runs, *once])
    assert "DoRA at its own rate: it has one learning rate, 0.001" in table.attrs["remarks"]
    assert set(table[table["rates"] == "own"]["configuration"]) == {"LoRA", "PiSSA"}
    with pytest.raises(UserError, match=r"all runs have the learning rate 0\.001"):
        compute(once)
    with pytest.raises(UserError, match="no learning rate of DoRA can be chosen"):
        compute([*runs, *once], baseline="DoRA")
    with pytest.raises(UserError, match="give --baseline one of LoRA, PiSSA"):
        compute(runs, baseline="MiLoRA")
    unknown = plant(tmp_path / "unknown", TEST, None)
    with pytest.raises(UserError, match="not evaluated on validation examples"):
        compute(unknown)


def test_paired_differences_say_at_which_rates(runs, tmp_path):
    table = paired_differences(runs)
    assert set(table["rates"]) == {"equal", "own"}
    assert "PiSSA at its own rate" in set(table["configuration"])
    text = differences_as_markdown(table)
    assert "paired difference to LoRA at equal learning rate" in text
    assert "paired difference to LoRA each at its own learning rate" in text
    one_rate = [run for run in runs if run.config["learning_rate"] == RATES[0]]
    table = paired_differences(one_rate)
    assert set(table["rates"]) == {"equal"}
    assert set(table["configuration"]) == {"LoRA", "PiSSA"}
    text = differences_as_markdown(table)
    assert "it is open which one is better with each at its own best rate" in text


def test_the_figure_draws_every_method_and_marks_its_own_rate(runs):
    figure = ANALYSIS.plot(compute(runs))
    panels = figure.axes
    assert len(panels) == 4
    ticks = [tick.get_text() for tick in panels[-1].get_xticklabels()]
    assert ticks == ["0.001", "0.002", "0.004", "own"]
    rings = [line for line in panels[2].lines if line.get_markersize() == 7]
    assert [float(ring.get_ydata()[0]) for ring in rings] == pytest.approx([0.5, 0.5], abs=0.05)
