from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.grassmann import compute
from tests.analyses.conftest import dense
from tests.analyses.test_command import assert_one_sentence


@pytest.fixture(scope="module")
def table(run) -> pd.DataFrame:
    return compute(run, steps=(4, 6))


def test_overlaps_equal_projections_of_dense_singular_vectors(run, table):
    for module in run.modules["module"]:
        pairs = {key: [] for key in (("update", "row"), ("update", "column"), ("factor", "row"))}
        for step in (4, 6):
            B, A, _ = dense(run, step, module)
            rank = int(torch.linalg.matrix_rank(B))  # columns of B may still be zero
            U, _, Vh = torch.linalg.svd(B @ A)
            pairs["update", "row"].append(Vh[:rank].T)
            pairs["update", "column"].append(U[:, :rank])
            pairs["factor", "row"].append(torch.linalg.svd(A).Vh[:4].T)
        for (matrix, side), (X, Y) in pairs.items():
            chosen = (table["module"] == module) & (table["matrix"] == matrix)
            rows = table[chosen & (table["side"] == side)]
            assert len(rows) == X.shape[1] * Y.shape[1]
            for row in rows.itertuples():
                P, Q = X[:, : row.i], Y[:, : row.j]
                truth = (P @ P.T @ Q).square().sum() / min(row.i, row.j)
                assert row.phi == pytest.approx(float(truth), abs=1e-6)


def test_an_adapter_overlaps_with_itself(run):
    same = compute(run, steps=(6, 6))
    assert same.loc[same["i"] == same["j"], "phi"].to_numpy() == pytest.approx(1)


def test_null_is_the_mean_over_random_directions(table):
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.linalg.qr(torch.randn(2, 3000, 32, 4, generator=generator).double()).Q
    phi = (X[:, :, :2].mT @ Y[:, :, :3]).square().sum((-1, -2)) / 2
    null = table[(table["side"] == "row") & (table["projection"] == "q_proj")]
    null = null[(null["i"] == 2) & (null["j"] == 3)]["null_phi"].iloc[0]
    assert null == 3 / 32
    assert abs(float(phi.mean()) - null) < 4 * float(phi.std()) / 3000**0.5


def test_command_compares_two_adapters_or_two_steps(command, run, adapter, tmp_path):
    found = command("grassmann", "--run", run.path, "--run", adapter, "--out", tmp_path)
    assert found.code == 0 and (tmp_path / "grassmann.png").is_file()
    table = pd.read_parquet(tmp_path / "grassmann.parquet")
    assert table.loc[table["i"] == table["j"], "phi"].to_numpy() == pytest.approx(1)
    found = command("grassmann", "--run", run.path, "--steps", "0,6", "--out", tmp_path)
    assert found.code == 0
    table = pd.read_parquet(tmp_path / "grassmann.parquet")
    assert set(zip(table["step"], table["other_step"], strict=True)) == {(0, 6)}
    zero = (table["matrix"] == "update") | (table["side"] == "column")
    assert not zero.any() and np.isfinite(table["phi"]).all()  # B is zero at step 0


def test_command_refuses_what_is_no_pair(command, run, adapter):
    assert_one_sentence(command("grassmann", "--run", run.path), "10,100")
    three = ["--run", run.path, adapter, adapter.parent / "step-000000"]
    assert_one_sentence(command("grassmann", *three), "not 3")
    assert_one_sentence(command("grassmann", "--run", run.path, "--steps", "0,99"), "step 99")
    same = command("grassmann", "--run", adapter, "--steps", "0,last")
    assert_one_sentence(same, "with itself", "--steps")
