"""Paired differences and their corrections, against SciPy and planted differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.comparisons import PRIMARY, compare, difference
from experiments.design import Design, read_design

LORA = {10: 0.5, 11: 0.7, 12: 0.6}
STEP = {10: 0.4, 11: 0.5, 12: 0.45}
NOISE = {10: 0.55, 11: 0.7, 12: 0.62}


def small_design() -> Design:
    return dataclasses.replace(
        read_design("x1"),
        arms_of={"A": ["LoRA", "step", "noise-only"]},
        primary=[("step", "LoRA"), ("noise-only", "step")],
        primary_regimes=["A"],
    )


def runs(regime: str, arm: str, losses: dict[int, float], *, rate: float = 1e-3) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "regime": regime, "arm": arm, "learning_rate": rate, "own": True,
            "equal": arm == "LoRA", "seed": list(losses), PRIMARY: list(losses.values()),
        }
    )  # fmt: skip


def table() -> pd.DataFrame:
    arms = {"LoRA": LORA, "step": STEP, "noise-only": NOISE}
    # In another order, and one seed that nothing else has: pairs must find each other.
    return pd.concat(
        [runs("A", arm, losses).sample(frac=1, random_state=1) for arm, losses in arms.items()]
        + [runs("A", "LoRA", {99: 100.0})]
    )


def test_the_baseline_at_the_arms_rate_is_compared_where_it_was_trained_there():
    step = runs("A", "step", STEP, rate=4e-3)
    others = [runs("A", "LoRA", LORA)]
    for rate, factor in ((4e-3, 2), (2e-3, 3)):
        losses = {seed: factor * loss for seed, loss in LORA.items()}
        others.append(runs("A", "LoRA", losses, rate=rate).assign(own=False, equal=False))
    rows = compare(pd.concat([step, *others]), small_design()).set_index(["against", "at"])
    row = rows.loc["LoRA", "arm"]
    assert (row["learning_rate"], row["against_rate"]) == (4e-3, 4e-3)
    assert row["difference"] == pytest.approx(np.mean([*STEP.values()]) - 2 * 0.6)
    assert not row["primary"]
    plain = compare(pd.concat([step, others[0]]), small_design())
    assert set(plain["at"]) == {"own"}


def test_differences_are_paired_by_seed_and_tested_as_scipy_does():
    rows = compare(table(), small_design()).set_index(["arm", "against"])
    for first, second, pair in (
        (STEP, LORA, ("step", "LoRA")),
        (NOISE, STEP, ("noise-only", "step")),
    ):
        row = rows.loc[pair]
        test = stats.ttest_rel(list(first.values()), list(second.values()))
        low, high = test.confidence_interval(0.95)
        assert row["pairs"] == 3
        assert row["difference"] == pytest.approx(test._estimate)
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert row["p_value"] == pytest.approx(test.pvalue)


def test_only_primary_comparisons_are_corrected_and_together():
    rows = compare(table(), small_design()).set_index(["arm", "against"])
    assert rows["primary"].to_dict() == {
        ("step", "LoRA"): True,
        ("noise-only", "LoRA"): False,
        ("noise-only", "step"): True,
    }
    p = rows["p_value"]
    small, large = sorted([p["step", "LoRA"], p["noise-only", "step"]])
    expected = [min(1, 2 * small), max(min(1, 2 * small), large)]
    assert sorted(rows["holm"].dropna()) == pytest.approx(expected)


def test_runs_at_the_equal_rate_are_compared_with_each_other():
    at_own, at_equal = runs("A", "step", STEP, rate=4e-3), runs("A", "step", NOISE)
    at_equal[["own", "equal"]] = [False, True]
    design = dataclasses.replace(small_design(), arms_of={"A": ["LoRA", "step"]}, primary=[])
    rows = compare(pd.concat([runs("A", "LoRA", LORA), at_own, at_equal]), design).set_index("at")
    assert rows.loc["own", "difference"] == pytest.approx(np.mean([*STEP.values()]) - 0.6)
    assert rows.loc["equal", "difference"] == pytest.approx(np.mean([*NOISE.values()]) - 0.6)
    assert rows["learning_rate"].to_dict() == {"own": 4e-3, "equal": 1e-3}


def test_a_slope_is_fitted_to_each_seeds_differences():
    slope = {"noise-0-of-128": 0.0, "noise-0.2-of-128": 0.2, "A": 0.4}
    seeds = range(10, 14)
    slopes = dict(zip(seeds, (-0.3, -0.1, -0.2, 0.0), strict=True))
    parts = []
    for regime, noise in slope.items():
        parts.append(runs(regime, "LoRA", {s: 1.0 + s for s in seeds}))
        parts.append(runs(regime, "token", {s: 1.5 + s + slopes[s] * noise for s in seeds}))
    design = dataclasses.replace(
        read_design("x5"), arms_of={regime: ["LoRA", "token"] for regime in slope}, slope=slope
    )
    row = compare(pd.concat(parts), design).iloc[-1]
    assert row["regime"] == "slope over noise-0-of-128, noise-0.2-of-128, A"
    assert row["difference"] == pytest.approx(-0.15)
    assert row["spread"] == pytest.approx(np.std([*slopes.values()], ddof=1))
    assert row["primary"]


def test_the_detectable_difference_is_detected_four_times_in_five():
    rng, spread, n = np.random.default_rng(0), 0.03, 10
    detectable = [difference(rng.normal(0, spread, n))["detectable"] / spread for _ in range(400)]
    # Of a true difference of that size (its spread known), t tests find 4 in 5.
    effect = float(np.mean(detectable)) * spread
    found = [difference(rng.normal(effect, spread, n))["p_value"] < 0.05 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_runs_without_a_spread_have_no_test():
    row = difference(np.array([0.5]))
    assert row["difference"] == 0.5
    assert np.isnan([row["low"], row["p_value"], row["detectable"]]).all()


def test_runs_that_differ_in_another_seed_only_are_one_repetition():
    several = [runs("A", "step", {seed: loss + shift for seed, loss in STEP.items()})
               for shift in (-0.1, 0.0, 0.1)]  # fmt: skip
    design = dataclasses.replace(small_design(), arms_of={"A": ["LoRA", "step"]}, primary=[])
    table = pd.concat([runs("A", "LoRA", LORA), *several])
    (row,) = compare(table, design).to_dict("records")
    test = stats.ttest_rel([*STEP.values()], [*LORA.values()])
    assert row["pairs"] == 3
    assert row["p_value"] == pytest.approx(test.pvalue)
