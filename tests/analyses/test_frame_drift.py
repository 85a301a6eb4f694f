from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

from analyses.frame_drift import SIDES, compute, pooled_leakage, summarize
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from tests.analyses.conftest import dense


@pytest.fixture(scope="module")
def table(run) -> pd.DataFrame:
    return compute(run)


def dense_angles(X: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
    """Ascending angles, sines and cosines of dense orthonormal bases in one order."""
    P, Q = (scipy.linalg.orth(Z.numpy(), rcond=1e-12) for Z in (X, Y))
    if P.shape[1] < Q.shape[1]:
        P, Q = Q, P
    sine = np.linalg.svd(Q - P @ (P.T @ Q), compute_uv=False)[::-1]
    cosine = np.linalg.svd(P.T @ Q, compute_uv=False)
    return np.arctan2(sine, cosine)


@pytest.mark.parametrize("step", [1, 2, 4, 6])
def test_angles_lengths_and_leakage_equal_dense_ones(run, table, step):
    for module in run.modules["module"]:
        B, A, _ = dense(run, step, module)
        dropped = ~torch.from_numpy(run.mask(step, module))
        for since, earlier in (("previous", step - 1), ("start", 0)):
            B0, A0, _ = dense(run, earlier, module)
            for side, now, then in (("row", A.T, A0.T), ("column", B, B0)):
                chosen = (table["step"] == step) & (table["module"] == module)
                chosen &= (table["side"] == side) & (table["since"] == since)
                (row,) = table[chosen].itertuples()
                move = now - then
                assert row.step_norm == pytest.approx(float(move.norm()), rel=1e-6)
                truth = dense_angles(now, then)
                np.testing.assert_allclose(row.angles, truth, atol=1e-7)
                if len(truth):
                    assert row.max_angle == row.angles[-1]
                else:
                    assert np.isnan(row.max_angle)
                if since == "previous" and float(move.norm()) > 0:
                    share = float(move[:, dropped].square().sum() / move.square().sum())
                    assert row.leakage == pytest.approx(share, abs=1e-9)
                elif since == "start":
                    assert np.isnan(row.leakage)


def test_b_has_no_frame_at_the_start_and_step_0_no_step(table):
    start = table[(table["side"] == "column") & (table["since"] == "start")]
    assert start["max_angle"].isna().all() and start["angles"].map(len).eq(0).all()
    assert table["step"].min() == 1
    assert not table.duplicated(["run", "step", "module", "side", "since"]).any()


def test_predicted_leakage_is_what_adamw_does_to_gated_noise(table):
    """keep_prob 0.5, as in the run."""
    draw = torch.Generator().manual_seed(0)
    w = torch.zeros(4000, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([w], lr=1.0, eps=1e-30, weight_decay=0.0)
    masked = total = 0.0
    for t in range(600):
        kept = torch.rand(4000, generator=draw) < 0.5
        w.grad = kept * torch.randn(4000, dtype=torch.float64, generator=draw)
        before = w.detach().clone()
        optimizer.step()
        if t >= 300:
            squares = (w.detach() - before).square()
            masked, total = masked + squares[~kept].sum(), total + squares.sum()
    previous = table["since"] == "previous"
    expected = table.loc[previous, "expected_leakage"]
    np.testing.assert_allclose(expected, float(masked / total), atol=5e-3)
    assert table.loc[~previous, "expected_leakage"].isna().all()


def test_leakage_of_all_modules_is_the_ratio_of_sums(run, table):
    found = pooled_leakage(table, ["step", "side"]).set_index(["step", "side"])["leakage"]
    for step in (2, 5):
        moves: dict[str, list[tuple[float, float]]] = {"row": [], "column": []}
        for module in run.modules["module"]:
            (B, A, _), (B0, A0, _) = dense(run, step, module), dense(run, step - 1, module)
            dropped = ~torch.from_numpy(run.mask(step, module))
            for side, move in (("row", A.T - A0.T), ("column", B - B0)):
                squares = move.square().sum(0)
                moves[side].append((float(squares[dropped].sum()), float(squares.sum())))
        for side, sums in moves.items():
            masked, total = np.sum(sums, axis=0)
            assert found[step, side] == pytest.approx(masked / total, rel=1e-6)
    assert set(found.index.get_level_values("step")) == set(range(1, 7))


def test_summary_gives_the_leakage_of_the_second_half_of_the_steps(table):
    late = table[(table["step"] > 3) & (table["since"] == "previous")]
    for side, label in SIDES.items():
        rows = late[late["side"] == side]
        squares = rows["step_norm"] ** 2
        expected = (rows["leakage"] * squares).sum() / squares.sum()
        numbers = summarize(table)[f"{table['run'].iloc[0]}, {label}"]
        assert numbers["leakage, second half of the steps"] == pytest.approx(expected)
        assert numbers["expected"] == pytest.approx(0.405)


def test_an_adapter_says_that_drift_needs_cores(adapter):
    with pytest.raises(UserError, match="record a run with `cores`"):
        compute(Run(adapter), steps=[0])


def test_command_draws_several_runs(command, run, tmp_path):
    found = command("frame_drift", "--run", run.path, "--out", tmp_path, "--modules", "q_proj")
    assert found.code == 0 and "leakage" in found.out
    table = pd.read_parquet(tmp_path / "frame_drift.parquet")
    assert set(table["projection"]) == {"q_proj"}
