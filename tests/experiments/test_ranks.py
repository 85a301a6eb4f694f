"""Effective ranks of what runs of different masks have in common: a planted signal and noise."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from experiments import ranks
from experiments.design import read_design
from experiments.ranks import rank_differences, ranks_of
from experiments.trajectories import at_equal_norm


def planted(*, signal: float, noise: float, seeds: int) -> list[torch.Tensor]:
    """Give updates with a common term of rank 1 and independent ones of high rank."""
    generator = torch.Generator().manual_seed(0)
    common = torch.zeros(40, 50, dtype=torch.float64)
    common[0, 0] = signal
    return [
        common + noise * torch.randn(40, 50, generator=generator, dtype=torch.float64)
        for _ in range(seeds)
    ]


def test_the_mean_over_seeds_has_the_signals_rank_where_noise_makes_single_ones_high():
    row = ranks_of(planted(signal=50.0, noise=0.6, seeds=64))
    assert row["single_entropy"] > 20
    assert row["mean_entropy"] < row["single_entropy"] / 2
    assert row["signal_share"] == pytest.approx(50**2 / (50**2 + 0.6**2 * 2000), rel=0.02)


def test_crossed_spectra_keep_the_signal_and_lose_what_is_left_of_the_noise():
    row = ranks_of(planted(signal=50.0, noise=0.6, seeds=8))
    assert 1.0 <= row["crossed_entropy"] < row["mean_entropy"] / 3
    assert row["crossed_stable"] == pytest.approx(1.0, abs=0.01)


def test_the_null_of_crossed_spectra_is_a_signal_under_the_same_deviations():
    runs = torch.stack(planted(signal=50.0, noise=0.6, seeds=8))
    other = torch.zeros(40, 50, dtype=torch.float64)
    other[0, 0] = other[1, 1] = 50.0
    null = ranks.planted(runs, other)
    assert torch.allclose(null.mean(0), other)
    assert torch.allclose(null[1] - null[0], (8 / 7) ** 0.5 * (runs[1] - runs[0]))
    # The runs have one direction in common where the null has two.
    crossed = [ranks.crossed_ranks(one, "crossed")["crossed_stable"] for one in (runs, null)]
    assert crossed == pytest.approx([1.0, 2.0], abs=0.02)


def test_crossed_spectra_of_runs_that_agree_are_theirs():
    updates = [planted(signal=0.0, noise=1.0, seeds=1)[0]] * 4
    row = ranks_of(updates)
    assert row["crossed_entropy"] == pytest.approx(row["single_entropy"])


def test_pure_noise_has_no_signal():
    row = ranks_of(planted(signal=0.0, noise=1.0, seeds=16))
    assert row["signal_share"] == pytest.approx(0.0, abs=0.02)


def test_one_run_is_its_own_mean():
    row = ranks_of(planted(signal=3.0, noise=0.3, seeds=1))
    assert row["single_entropy"] == pytest.approx(row["mean_entropy"])
    assert row["single_norm"] == pytest.approx(row["mean_norm"])


def test_ranks_are_compared_with_the_baselines_single_runs_of_the_same_seed():
    table = pd.DataFrame(
        {
            "regime": "A",
            "arm": ["LoRA"] * 3 + ["step"] * 3,
            "seed": [20, 21, 22, 22, 20, 21],
            "single_entropy": [5.0, 6.0, 7.0, 9.0, 8.0, 8.5],
            "mean_entropy": [5.0, 6.0, 7.0, 6.0, 4.5, 5.5],
        }
    )
    rows = rank_differences(table, read_design("x6")).set_index(["arm", "quantity"])
    assert rows.loc[("step", "single_entropy"), "difference"] == pytest.approx(2.5)
    assert rows.loc[("step", "mean_entropy"), "difference"] == pytest.approx(-2 / 3)
    assert rows.loc[("LoRA", "single_entropy"), "difference"] == 0


def test_arms_are_compared_at_the_norm_that_both_reach():
    steps = pd.DataFrame({"step": [0, 10, 20], "norm": [0.0, 1.0, 2.0], "entropy": [1.0, 3.0, 4.0]})
    far = pd.DataFrame({"step": [0, 10, 20], "norm": [0.0, 1.0, 4.0], "entropy": [1.0, 5.0, 11.0]})
    table = pd.concat(
        [one.assign(regime="A", arm=arm, seed=20) for arm, one in (("LoRA", steps), ("step", far))]
    )
    row = at_equal_norm(table, read_design("x6")).set_index("arm").loc["step"]
    assert row["norm"] == 2.0
    assert row["entropy"] == pytest.approx(7.0)
    assert row["baseline_entropy"] == pytest.approx(4.0)


def test_no_rank_is_given_at_a_norm_that_the_baseline_was_never_seen_at():
    steps = pd.DataFrame({"step": [0, 10], "norm": [0.0, 1.0], "entropy": [0.0, 3.0]})
    small = steps.assign(norm=[0.0, 0.5])
    table = pd.concat(
        [
            one.assign(regime="A", arm=arm, seed=20)
            for arm, one in (("LoRA", steps), ("step", small))
        ]
    )
    assert list(at_equal_norm(table, read_design("x6"))["arm"]) == ["LoRA"]


def test_an_arm_of_another_optimizer_is_compared_with_that_optimizers_baseline():
    arms = ["LoRA", "LoRA-sgd", "step-sgd"]
    table = pd.DataFrame(
        {"regime": "A", "arm": arms, "seed": 20, "single_entropy": [5.0, 7.0, 7.5]}
    )
    row = rank_differences(table, read_design("x6")).set_index("arm").loc["step-sgd"]
    assert (row["against"], row["difference"]) == ("LoRA-sgd", 0.5)
    steps = [{"step": t, "norm": float(t), "entropy": 1.0} for t in (0, 1, 2)]
    rows = [
        {**one, "regime": "A", "arm": arm, "seed": 20, "entropy": entropy}
        for arm, entropy in zip(arms, (5.0, 7.0, 7.5), strict=True)
        for one in steps
    ]
    row = at_equal_norm(pd.DataFrame(rows), read_design("x6")).set_index("arm").loc["step-sgd"]
    assert (row["entropy"], row["baseline_entropy"]) == (7.5, 7.0)
