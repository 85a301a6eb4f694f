"""Modules of several ranks, long runs in many batches, and unfinished runs come out whole."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import effective_rank, frame_drift, mask_theory, subspace_angles
from analyses.kit.cores import StepMasks, map_parallel
from analyses.kit.tables import concatenate, ragged
from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.linalg.rank_core import frame_core
from subspace_lab.recording.writer import RunWriter
from subspace_lab.runs import core_batches
from subspace_lab.runs.run import Run
from subspace_lab.runs.stored_cores import frame_arrays

RANKS = {"layers.0.q_proj": 3, "layers.0.v_proj": 5, "layers.1.q_proj": 3, "layers.1.v_proj": 5}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Run:
    """Give a run of 20 steps whose modules have ranks 3 and 5, in turn, left open by its writer."""
    folder = tmp_path_factory.mktemp("mixed") / "run"
    rows = [(name, int(name[7]), name[9:], 11, 13, r, 0.5) for name, r in RANKS.items()]
    columns = ["module", "layer", "projection", "m", "n", "r", "scaling"]
    law = {"keep_prob": 0.5, "granularity": "step", "rescale": True, "sampling": "bernoulli"}
    writer = RunWriter(folder, {"mask": law}, pd.DataFrame(rows, columns=columns))
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    sizes = {"row": 13, "column": 11}
    states: dict[tuple[str, int], list[torch.Tensor]] = {}
    for step in range(21):
        arrays = {}
        for rank in (3, 5):
            for side, n in sizes.items():
                X = torch.randn(2, n, rank, generator=generator, dtype=torch.float64)
                states.setdefault((side, rank), []).append(X)
                past = states[side, rank]
                frame = frame_core(X, past[max(step - 1, 0)], past[0])
                arrays |= {f"r{rank}/{name}": v for name, v in frame_arrays(side, frame)}
        writer.add_core(step, arrays)
        if step:
            writer.add_masks(step, {r: rng.random((2, r)) < 0.5 for r in (3, 5)})
        if step % 7 == 0:
            writer.flush(wait=True)
    writer.flush(wait=True)
    return Run(folder)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(core_batches, "CORES_PER_BATCH", 5)


def test_every_core_is_met_once_whatever_the_batches(mixed):
    table = effective_rank.compute(mixed, measures=["stable"])
    assert not table.duplicated(["step", "module", "matrix"]).any()
    assert len(table) == 4 * (3 * 21 + 20)
    for row in table[table["matrix"] == "update"].itertuples():
        sigma = mixed.core(row.step, row.module).singular_values()
        assert row.value == pytest.approx(float((sigma / sigma[0]).square().sum()), rel=1e-12)
        assert row.kept == RANKS[row.module]
    assert table["module"].dtype == "category" and table["projection"].dtype == "category"


def test_masks_and_frames_of_one_module_belong_together(mixed):
    table = subspace_angles.compute(mixed)
    assert len(table) == 4 * 19 * 4
    rows = table[(table["space"] == "weights") & (table["side"] == "row")]
    for row in rows.itertuples():
        masks = [torch.from_numpy(mixed.mask(row.step + i, row.module)) for i in (0, 1)]
        truth = linalg.masked_angles(mixed.core(row.step, row.module).row.R, *masks).angles
        np.testing.assert_allclose(row.angles, truth[~truth.isnan()], atol=1e-12)


def test_drift_of_mixed_ranks(mixed):
    table = frame_drift.compute(mixed, steps=[3, 20])
    for row in table[table["side"] == "column"].itertuples():
        frame = mixed.core(row.step, row.module).column
        norm = float(frame.displacement(row.since).norm)
        assert row.step_norm == pytest.approx(norm, rel=1e-12)
        assert len(row.angles) == RANKS[row.module]


def test_one_module_of_one_rank_can_be_chosen(mixed):
    found = effective_rank.compute(mixed, steps=[2, 9], modules=["layers.1.v_proj"])
    assert set(found["module"]) == {"layers.1.v_proj"} and set(found["step"]) == {2, 9}


def test_step_masks_are_looked_up_by_step_and_module(mixed):
    masks = StepMasks(mixed)
    assert list(masks.has(np.array([0, 1, 20, 21]))) == [False, True, True, False]
    found = masks.at(np.array([4, 9]), ["layers.1.v_proj", "layers.0.v_proj"])
    assert (found[1, 0] == mixed.mask(9, "layers.1.v_proj")).all()
    assert found.shape == (2, 2, 5)


def test_missing_step_masks_are_named_and_never_replaced_by_others(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "masks" / "steps-00000003-00000004.safetensors").unlink()
    incomplete = Run(copy)
    names = incomplete.modules["module"].tolist()
    with pytest.warns(UserWarning, match="lacks the masks of the steps 3 to 4, which are left out"):
        masks = StepMasks(incomplete)
    assert (masks.at(np.array([5]), names)[0, 0] == run.mask(5, names[0])).all()
    with pytest.raises(UserError, match="no masks of the steps 3 to 4"):
        masks.at(np.array([2, 3, 4, 5]), names)
    with pytest.warns(UserWarning, match="left out"):
        table = effective_rank.compute(incomplete, measures=["numerical"])
    masked = table[table["matrix"] == "masked_update"]
    assert sorted(masked["step"].unique()) == [1, 2, 5, 6]
    with pytest.raises(UserError, match="lacks the masks of the steps 3 to 4: restore"):
        mask_theory.compute(incomplete)


def test_parallel_results_keep_the_order_and_pass_errors_on():
    found = map_parallel(lambda x: x * x, range(50), total=50, unit="", description="")
    assert list(found) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(map_parallel(lambda x: 1 / x, [1, 0, 2], total=3, unit="", description=""))


def test_ragged_rows_and_their_concatenation():
    rows = ragged(np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, np.nan]]))
    assert [list(row) for row in rows] == [[1.0, 2.0], [], [3.0]]
    tables = [
        pd.DataFrame({"run": pd.Categorical([name]), "x": [value]})
        for name, value in (("a", 1), ("b", 2), ("a", 3))
    ]
    found = concatenate([*tables, pd.DataFrame()])
    assert list(found["run"].astype(str)) == ["a", "b", "a"] and list(found["x"]) == [1, 2, 3]
    assert found["run"].dtype == "category" and concatenate([]).empty
