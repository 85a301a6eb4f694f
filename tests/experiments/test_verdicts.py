"""Every verdict on a claim from made-up tables, and the shipped ones from the shipped tables."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.claims.paper import CLAIMS
from analyses.claims.registered import FILE
from experiments.__main__ import decide_claims
from experiments.claims import OUTCOMES, RESTS_ON, STRICT, Predicted
from experiments.comparisons import PRIMARY
from experiments.design import read_design
from experiments.measured import (
    EQUAL_NORM,
    GAIN_OVER_SINGLES,
    SLOPE_OVER_RANK,
    WEIGHTED,
    measured_differences,
)
from experiments.tables import table_text
from experiments.verdicts import claim_rows, overall, shows, verdict_table
from subspace_lab.stats.multiple import holm

RESULTS = Path(__file__).parents[2] / "docs" / "experiments" / "results"
SEEDS = range(4)
NOISE = np.array([-1.0, 1.0, -2.0, 2.0])


@pytest.mark.parametrize(
    ("sign", "difference", "p_value", "expected"),
    [
        ("below", -0.1, 0.04, "supported"),
        ("below", -0.1, 0.05, "undecided"),
        ("below", 0.1, 0.04, "contradicted"),
        ("above", 0.1, 0.04, "supported"),
        ("above", -0.1, 0.04, "contradicted"),
        ("above", 0.1, 0.06, "undecided"),
        ("none", 0.1, 0.04, "contradicted"),
        ("none", 0.1, 0.06, "undecided"),
        ("none", 0.01, 0.04, "supported"),  # beyond zero, and too small to matter
        ("none", 0.025, 0.9, "undecided"),  # one end of the interval beyond the margin
        ("none", -0.025, 0.9, "undecided"),
        ("below", float("nan"), float("nan"), "not tested"),
    ],
)
def test_what_a_difference_shows(sign, difference, p_value, expected):
    ends = {"low": difference - 0.02, "high": difference + 0.02}
    found = shows(sign, difference=difference, **ends, p_value=p_value, margin=0.04)
    assert found == expected


def test_without_a_margin_nothing_is_none():
    numbers = {"difference": 0.0, "low": -0.01, "high": 0.01, "p_value": 1.0}
    assert shows("none", **numbers, margin=float("nan")) == "undecided"


@pytest.mark.parametrize(
    ("shown", "expected", "strictly"),
    [
        (["supported", "supported"], "supported", "supported"),
        (["supported", "undecided"], "supported in part", "supported in part"),
        (["supported", "not tested"], "supported in part", "supported in part"),
        (["supported", "contradicted"], "supported in part", "contradicted"),
        (["contradicted", "undecided"], "contradicted", "contradicted"),
        (["contradicted", "not tested"], "contradicted", "contradicted"),
        (["undecided", "not tested"], "undecided", "undecided"),
        (["not tested"], "not tested", "not tested"),
        ([], "not tested", "not tested"),
    ],
)
def test_what_differences_show_together(shown, expected, strictly):
    assert overall(shown) == expected
    assert overall(shown, strict=True) == strictly


def test_primary_p_values_are_as_registered_and_others_corrected_over_the_claim():
    measured = pd.DataFrame(
        {
            "experiment": "x1", "regime": regime, "comparison": "step - LoRA", "outcome": PRIMARY,
            "rates": rates, "difference": -1.0, "low": -2.0, "high": -0.1, "p_value": p_value,
            "pairs": 10, "holm": registered,
        }
        for regime, rates, p_value, registered in [
            ("A", "own", 0.001, 0.06), ("A", "equal", 0.02, np.nan),
            ("B", "own", 0.001, 0.04), ("B", "equal", 0.03, np.nan),
        ]
    )  # fmt: skip
    predicted = [Predicted("below", "x1", "step - LoRA", rates=at) for at in ("own", "equal")]
    rows = claim_rows(predicted, measured, {})
    assert [row["p_holm"] for row in rows] == pytest.approx([0.06, 0.04, *holm([0.02, 0.03])])
    shown = ["undecided", "supported", "supported", "supported"]
    assert [row["shows"] for row in rows] == shown
    alone = claim_rows([predicted[1]], measured[measured["regime"] == "B"], {})
    assert [row["shows"] for row in alone] == ["not tested", "supported"]
    assert alone[1]["p_holm"] == 0.03


def compared(arm: str, against: str, mean: float, **fields: Any) -> dict[str, Any]:
    """Make a row of a table of differences, its interval of half the width 0.01."""
    clear = abs(mean) > 0.01
    row = {"regime": "A", "arm": arm, "against": against, "at": "own", "outcome": PRIMARY}
    numbers = {"difference": mean, "low": mean - 0.01, "high": mean + 0.01, "pairs": 10}
    return row | numbers | {"p_value": 0.001 if clear else 0.5, "holm": np.nan} | fields


def decided(folder: Path, **tables: list[dict[str, Any]]) -> dict[str, str]:
    """Write tables of experiments and give the verdicts on claims."""
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"{name.replace('_', '-')}.csv", index=False)
    return verdict_table(folder).set_index("claim")["verdict"].to_dict()


@pytest.mark.parametrize(
    ("gain", "regimes", "every", "better"),
    [
        (-0.05, "AB", "supported in part", "supported in part"),  # C was not measured
        (0.05, "AB", "contradicted", "contradicted"),
        (0.0, "AB", "undecided", "undecided"),
    ],
)
def test_verdicts_follow_the_tables(tmp_path, gain, regimes, every, better):
    found = decided(tmp_path, x1_differences=[compared("step", "LoRA", gain, regime=r)
                                              for r in regimes])  # fmt: skip
    assert found["better on every task"] == every
    assert found["significantly better"] == better
    assert found["no extra cost"] == found["a mild pruning"] == "not tested"


def test_one_task_behind_refutes_every_task(tmp_path):
    ahead = [compared("step", "LoRA", -0.05, regime=regime) for regime in "AB"]
    behind = [compared("token", "LoRA", 0.05, regime="C")]
    found = decided(tmp_path, x1_differences=ahead, x5_differences=behind)
    assert found["better on every task"] == "contradicted"


@pytest.mark.parametrize(
    ("token", "expected"),
    [(-0.05, "contradicted"), (0.0, "supported in part"), (-0.008, "undecided")],
)
def test_a_gain_without_subspaces_refutes_their_search(tmp_path, token, expected):
    gain = compared("step", "LoRA", -0.03)  # so that less than 0.015 is none
    found = decided(tmp_path, x1_differences=[gain], x2_differences=[
        compared("token", "LoRA", token), compared("token", "step", 0.0)])  # fmt: skip
    assert found["by subspaces"] == expected


def test_differences_that_no_table_compares(tmp_path):
    """Between keep_probs, over ranks, over single masks and at equal norm; LoRA's loss is 1."""
    losses = {("A", "LoRA"): 1 + 0 * NOISE, ("A", "token"): 0.9 + 0.01 * NOISE,
              ("A", "token-0.8"): 0.8 + 0.02 * NOISE}  # fmt: skip
    for rank in (4, 32):
        losses |= {(f"A-rank-{rank}", "LoRA"): 1 + 0 * NOISE}
        losses |= {(f"A-rank-{rank}", "token"): 1 - 0.05 * np.log2(rank / 4) + 0.01 * NOISE}
    rows = [
        {"regime": regime, "arm": arm, "own": own, "seed": seed, PRIMARY: loss * (2 - own)}
        for (regime, arm), of_seeds in losses.items()
        for seed, loss in zip(SEEDS, of_seeds, strict=True)
        for own in (True, False)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "x5-runs.csv", index=False)
    inference = [
        {"regime": "A", "arm": arm, "seed": seed, "predictor": name, "calibrated_loss": loss}
        for seed in SEEDS
        for arm, single in (("LoRA", 1.5), ("step", 1.7 + 0.1 * NOISE[seed]))
        for name, loss in (("full", 1.0), ("singles", single), ("geometric", 9.0))
    ]
    pd.DataFrame(inference).to_csv(tmp_path / "x4-inference.csv", index=False)
    norms = {"regime": "A", "arm": "step", "against": "LoRA", "seed": SEEDS, "entropy": 9 + NOISE}
    norms = pd.DataFrame(norms).assign(baseline_entropy=7.0)
    norms.to_csv(tmp_path / "x6-equal-norm.csv", index=False)
    weighted = [
        pd.DataFrame({"regime": regime, "arm": arm, "seed": SEEDS, "weighted_entropy": values})
        for regime, arm, values in (
            ("A", "LoRA", 2.0),
            ("A", "step", 2.5 + NOISE),
            ("B", "LoRA", 3.0),
        )
    ]
    pd.concat(weighted).to_csv(tmp_path / "x6-theory.csv", index=False)
    found = measured_differences(tmp_path).set_index("outcome")
    assert len(found) == 5
    x = np.array([2.0, 4.0, 5.0])
    gains = np.array([losses[place, "token"] - 1 for place in ("A-rank-4", "A", "A-rank-32")])
    expected = {
        PRIMARY: losses["A", "token-0.8"] - losses["A", "token"],
        SLOPE_OVER_RANK: [np.polyfit(x, of_seed, 1)[0] for of_seed in gains.T],
        GAIN_OVER_SINGLES: 0.2 + 0.1 * NOISE,
        EQUAL_NORM: 2 + NOISE,
        WEIGHTED: 0.5 + NOISE,
    }
    for outcome, values in expected.items():
        row = found.loc[outcome]
        assert row["difference"] == pytest.approx(np.mean(values))
        assert row["pairs"] == 4
        if np.ptp(values) > 1e-9:
            assert row["p_value"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found.loc[PRIMARY, "comparison"] == "token-0.8 - token"
    assert found.loc[EQUAL_NORM, "rates"] == "equal"  # X6's, whatever its tables call it


def test_tables_are_read_by_the_end_of_their_name(tmp_path):
    """`x7-short` has a dash; `rank-differences` ends as `differences` does."""
    differences = pd.DataFrame([compared("step", "LoRA", -0.05, primary=True, learning_rate=1.0,
                                         detectable=0.02, holm=0.01)])  # fmt: skip
    differences.to_csv(tmp_path / "x7-short-differences.csv", index=False)
    ranks = pd.DataFrame([compared("step", "LoRA", 2.0, quantity="single_entropy")])
    ranks.to_csv(tmp_path / "x7-short-rank-differences.csv", index=False)
    found = measured_differences(tmp_path).set_index("outcome")
    assert set(found["experiment"]) == {"x7-short"}
    assert found.loc[PRIMARY, "difference"] == -0.05
    assert found.loc["single_entropy", "difference"] == 2.0
    assert "step - LoRA" in table_text("x7-short-primary", tmp_path)


def test_the_table_of_claims_has_each_verdict_once():
    rows = pd.read_csv(RESULTS / "claims.csv")
    _, _, *lines, untested = table_text("claims", RESULTS).splitlines()
    assert len(lines) == rows["difference"].notna().sum()
    for claim, of_claim in rows.groupby("claim"):
        verdict = of_claim["verdict"].iloc[0]
        if verdict == "not tested":
            assert str(claim) in untested
        else:
            (line,) = (line for line in lines if line.startswith(f"| **{claim}** ("))
            assert line.endswith(f"| **{verdict}** |")


def test_claims_rest_on_arms_that_the_experiments_have():
    names = [claim.name for claim in CLAIMS]
    assert set(RESTS_ON) <= set(names) and set(STRICT) <= set(RESTS_ON)
    for predicted in (one for rests in RESTS_ON.values() for one in rests):
        assert predicted.outcome in OUTCOMES
        design = read_design(predicted.experiment)
        first, second = predicted.comparison.split(" - ")
        arms = {first.partition(",")[0], second} - {"full update"}
        for regime in predicted.regimes:
            assert arms <= set(design.arms_of[regime])


def test_the_shipped_verdicts_are_those_of_the_shipped_tables(tmp_path):
    for path in set(RESULTS.glob("*.csv")) - {RESULTS / "claims.csv"}:
        (tmp_path / path.name).symlink_to(path)
    decide_claims(tmp_path)
    remake = "stale: run `python -m experiments claims --out docs/experiments`"
    written = (tmp_path / "claims.csv").read_text("utf-8")
    assert (RESULTS / "claims.csv").read_text("utf-8") == written, remake
    assert FILE.read_text("utf-8") == written, f"{remake} and copy claims.csv to {FILE}"


def test_an_installed_package_has_the_verdicts():
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["analyses"]
    assert any(FILE in (root / "analyses").glob(pattern) for pattern in patterns)
