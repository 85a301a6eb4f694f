"""The regulariser of recorded cores against the factors themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import regulariser
from subspace_lab.runs.run import Run
from tests.analyses.conftest import dense


def test_values_are_those_of_the_factors_and_of_all_masks(run):
    table = regulariser.compute(run)
    assert len(table) == len(run.steps) * len(run.modules)
    for row in table[table["step"].isin([1, 6])].itertuples():
        B, A, scaling = dense(run, row.step, row.module)
        products = (B.norm(dim=0) * A.norm(dim=1)).square().sum()
        sigma = torch.linalg.svdvals(scaling * B @ A)
        rank = A.shape[0]
        assert row.regularizer == pytest.approx(float(scaling**2 * products), rel=1e-6)
        assert row.minimum == pytest.approx(float(sigma.sum() ** 2 / rank), rel=1e-6)
        assert row.balance_ratio == pytest.approx(row.regularizer / float(sigma.square().sum()))
        assert row.balance_ratio >= row.minimum_ratio * (1 - 1e-9)
        # Var dW_D over all 2^r masks of keep_prob 0.5, rescaled by 2.
        updates = torch.stack(
            [
                2 * scaling * B @ torch.diag(torch.tensor(mask).double()) @ A
                for mask in itertools.product([0, 1], repeat=rank)
            ]
        )
        assert row.penalty == pytest.approx(float(updates.var(0, correction=0).sum()), rel=1e-6)
        norms = updates.square().sum((-2, -1))
        assert row.masked_mean == pytest.approx(float(norms.mean()), rel=1e-6)
        assert row.masked_std == pytest.approx(float(norms.std(correction=0)), rel=1e-6)
        if row.step == 6:
            assert np.isnan(row.masked)  # no step 7
        else:
            kept = run.mask(row.step + 1, row.module)
            masked = 2 * scaling * B[:, kept] @ A[kept]
            assert row.masked == pytest.approx(float(masked.square().sum()), rel=1e-6)


def test_penalty_of_equation_2_is_q_times_1_minus_q_of_r(run):
    """Without the rescale it is 0.25 R at keep_prob 0.5; with it, R."""
    for rescale, share in ((True, 1.0), (False, 0.25)):
        described = Run(run.path)
        described.description["mask"]["rescale"] = rescale
        table = regulariser.compute(described, steps=[6])
        np.testing.assert_allclose(table["penalty"], share * table["regularizer"], rtol=1e-9)


def test_an_update_that_cancels_has_no_ratio(cancelled):
    """PiSSA saved at step 0 for the original base: [B, -B] [A; A]."""
    table = regulariser.compute(Run(cancelled))
    assert table["balance_ratio"].isna().all() and table["minimum_ratio"].isna().all()
    assert (table["minimum"] == 0).all()
    assert (table["regularizer"] > 0).all()


def test_a_zero_update_has_no_ratio_and_an_unmasked_adapter_no_penalty(run, adapter, command):
    start = regulariser.compute(run, steps=[0])
    assert (start["regularizer"] == 0).all()
    assert start["balance_ratio"].isna().all()
    done = command("regulariser", "--run", adapter, "--out", adapter.parent / "out")
    assert done.code == 0, done.err
    table = pd.read_parquet(adapter.parent / "out" / "regulariser.parquet")
    assert table["penalty"].isna().all()
    assert np.isfinite(table["regularizer"]).all()
    assert [axis.get_ylabel() for axis in regulariser.plot(table).axes][1] == "R / ‖ΔW‖²"


def test_masked_norms_are_summed_over_modules_and_seeds_share_the_band(run):
    table = regulariser.compute(run, steps=[2, 3]).assign(configuration="all")
    other = table.assign(run="other", masked=2 * table["masked"])
    ratio = regulariser.masked_ratio(pd.concat([table, other])).set_index("step")
    for step, rows in table.groupby("step"):
        mean = 2 * rows["masked_mean"].sum()
        assert ratio.loc[step, "ratio"] == pytest.approx(3 * rows["masked"].sum() / mean)
        half = 1.96 * (2 * rows["masked_std"].pow(2).sum()) ** 0.5 / mean
        assert ratio.loc[step, "high"] == pytest.approx(1 + half)
