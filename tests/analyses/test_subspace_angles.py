from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

from analyses.subspace_angles import compute, null_phi
from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import Bernoulli, ExactK
from tests.analyses.conftest import dense


@pytest.fixture(scope="module")
def table(run) -> pd.DataFrame:
    return compute(run)


def rows_of(table, step, module, space):
    chosen = (table["step"] == step) & (table["module"] == module)
    found = table[chosen & (table["space"] == space)]
    assert len(found) == 1
    return found.iloc[0]


def cosines(X: torch.Tensor, Y: torch.Tensor) -> np.ndarray:
    """Cosines of the principal angles of dense matrices, through orthonormal bases."""
    bases = [scipy.linalg.orth(Z.numpy(), rcond=1e-12) for Z in (X, Y)]
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_angles_on_weights_equal_dense_ones(run, table, step):
    for module in run.modules["module"]:
        B, A, _ = dense(run, step, module)
        first, second = (torch.from_numpy(run.mask(s, module)) for s in (step, step + 1))
        for side, X in (("row", A.T), ("column", B)):
            found = rows_of(table, step, module, side)
            truth = cosines(X[:, first], X[:, second])
            np.testing.assert_allclose(np.cos(found["angles"]), truth, atol=1e-7)
            assert (np.diff(found["angles"]) >= 0).all()
            phi = np.mean(truth**2) if len(truth) else np.nan
            assert found["phi"] == pytest.approx(phi, abs=1e-7, nan_ok=True)


def test_shared_directions_of_the_row_space_are_exact_zeros(table):
    rows = table[table["space"] == "row"]
    assert (rows["shared"] > 0).any()
    for angles, shared in zip(rows["angles"], rows["shared"], strict=True):
        assert (angles[:shared] == 0.0).all()
        assert (angles[shared:] > 1e-3).all()


def test_coordinate_space_counts_what_the_masks_have_in_common(run, table):
    for step in range(1, 6):
        for module in run.modules["module"]:
            first, second = (set(np.flatnonzero(run.mask(s, module))) for s in (step, step + 1))
            found = rows_of(table, step, module, "coordinate")
            shared = len(first & second)
            assert found["next_step"] == step + 1
            assert found["kept"] == len(first) and found["next_kept"] == len(second)
            assert found["shared"] == shared
            count = min(len(first), len(second))
            assert list(found["angles"]) == [0.0] * shared + [np.pi / 2] * (count - shared)
            union = len(first | second)
            assert found["jaccard"] == (shared / union if union else 1.0)


def test_summaries_of_the_angles_are_those_of_the_list(table):
    for row in table.itertuples():
        if len(row.angles):
            assert row.min_angle == row.angles[0] and row.max_angle == row.angles[-1]
            assert row.median_angle == pytest.approx(np.median(row.angles), abs=1e-15)
            rest = row.angles[row.angles > 0]
            residual = rest[0] if len(rest) else np.nan
            assert row.min_residual_angle == pytest.approx(residual, rel=0, abs=0, nan_ok=True)
        else:
            assert np.isnan([row.phi, row.min_angle, row.median_angle, row.max_angle]).all()


def test_expectations_follow_the_mask_law(table):
    assert table["expected_kept"].eq(2).all()
    assert table["expected_shared"].eq(1).all()
    np.testing.assert_allclose(
        table["expected_jaccard"], (1 / 3) * (1 - 0.5**8) + 0.5**8, rtol=1e-12
    )
    weights = table[(table["space"] != "coordinate") & (table["projection"] == "v_proj")]
    for side, length in (("row", 32), ("column", 16)):  # v_proj is 16 x 32
        null = linalg.null_overlap(length, Bernoulli(0.5).kept_pmf(4)).phi
        assert weights.loc[weights["space"] == side, "null_phi"].eq(null).all()


@pytest.mark.parametrize("law", [Bernoulli(0.5), ExactK(0.5)])
def test_null_phi_is_the_mean_over_masks_of_gaussian_frames(law):
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 4000, 6, generator=generator)
    masks = law.draw(draws)
    frames = torch.randn(4000, 20, 6, generator=generator, dtype=torch.float64)
    angles = linalg.masked_angles(frames, masks[0], masks[1]).angles
    phi = angles.cos().square().nanmean(-1)
    phi = phi[~phi.isnan()]
    error = float(phi.std()) / len(phi) ** 0.5
    assert abs(float(phi.mean()) - null_phi(20, 6, law)) < 4 * error


def test_a_run_without_step_masks_says_what_to_record(adapter):
    with pytest.raises(UserError, match="`method` droplora and `granularity` step"):
        compute(Run(adapter))


def test_the_last_step_has_no_next_mask(run):
    with pytest.raises(UserError, match="among those selected"):
        compute(run, steps=[6])


def test_command_writes_lists_that_read_back(command, run, tmp_path):
    found = command("subspace_angles", "--run", run.path, "--out", tmp_path, "--format", "svg")
    assert found.code == 0 and "shared: measured" in found.out
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".parquet", ".svg"}
    table = pd.read_parquet(tmp_path / "subspace_angles.parquet")
    fewer = table[["kept", "next_kept"]].min(axis=1)
    coordinate = table["space"] == "coordinate"
    assert (table["angles"].map(len)[coordinate] == fewer[coordinate]).all()
