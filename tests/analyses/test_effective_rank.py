from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Trainer, TrainingArguments

from analyses.effective_rank import compute, summarize
from subspace_lab.errors import UserError
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from tests.analyses.conftest import dense
from tests.tiny import batch, tiny_lora


def by_definition(sigma: np.ndarray) -> dict[str, float]:
    """Effective ranks of the singular values of a dense matrix, straight from their definitions."""
    sigma = sigma[sigma > 1e-10 * sigma[0]] if sigma[0] else sigma[:0]
    if not len(sigma):
        return dict.fromkeys(("entropy", "stable", "participation", "energy90", "numerical"), 0.0)
    p, energy = sigma / sigma.sum(), sigma**2
    return {
        "entropy": np.exp(-(p * np.log(p)).sum()),
        "stable": energy.sum() / energy[0],
        "participation": energy.sum() ** 2 / (energy**2).sum(),
        "energy90": 1.0 + int((energy.cumsum() < 0.9 * energy.sum() * (1 - 1e-12)).sum()),
        "numerical": float(len(sigma)),
    }


@pytest.fixture(scope="module")
def table(run) -> pd.DataFrame:
    return compute(run)


def test_values_equal_those_of_dense_matrices(run, table):
    for step in (0, 1, 3, 6):
        for module in run.modules["module"]:
            B, A, scaling = dense(run, step, module)
            matrices = {"update": scaling * B @ A, "A": A, "B": B}
            if step:
                mask = torch.from_numpy(run.mask(step, module))
                matrices["masked_update"] = scaling * (B * mask) @ A
            rows = table[(table["step"] == step) & (table["module"] == module)]
            assert len(rows) == 5 * len(matrices)
            for matrix, dense_matrix in matrices.items():
                truth = by_definition(torch.linalg.svdvals(dense_matrix).numpy())
                found = rows[rows["matrix"] == matrix].set_index("measure")["value"]
                for measure, value in truth.items():
                    assert found[measure] == pytest.approx(value, rel=1e-8), (matrix, measure)


def test_kept_is_the_masks_count_and_r_without_a_mask(run, table):
    for (step, module), rows in table.groupby(["step", "module"], observed=True):
        masked = rows["matrix"] == "masked_update"
        assert (rows.loc[~masked, "kept"] == 4).all()
        if step:
            assert (rows.loc[masked, "kept"] == run.mask(step, module).sum()).all()


def test_a_row_is_run_step_module_matrix_measure(table):
    key = ["run", "step", "module", "matrix", "measure"]
    assert not table.duplicated(key).any()
    assert set(table) >= {*key, "layer", "projection", "value", "kept"}
    assert table["expected_rank"].dropna().eq(2).all()
    assert set(table.loc[table["expected_rank"].notna(), "matrix"]) == {"masked_update"}


def test_an_adapter_of_another_tool_has_all_but_the_masked_update(run, table, adapter):
    found = compute(Run(adapter))
    assert set(found["matrix"]) == {"update", "A", "B"}
    last = table[(table["step"] == 6) & (table["matrix"] != "masked_update")]
    key = ["module", "matrix", "measure"]
    pair = [t.astype(dict.fromkeys(key, str)).set_index(key)["value"] for t in (found, last)]
    pd.testing.assert_series_equal(pair[0].sort_index(), pair[1].sort_index(), rtol=1e-9)


def test_command_writes_table_figures_and_summary(command, run, tmp_path):
    found = command("effective_rank", "--run", run.path, "--out", tmp_path, "--steps", "1,4")
    assert found.code == 0
    for suffix in ("parquet", "png", "pdf", "json"):
        assert f"wrote {tmp_path / f'effective_rank.{suffix}'}" in found.out
    table = pd.read_parquet(tmp_path / "effective_rank.parquet")
    assert sorted(table["step"].unique()) == [1, 4]
    content = json.loads((tmp_path / "effective_rank.json").read_text())
    assert content["provenance"]["versions"]["torch"]
    assert content["runs"][0]["mask"]["keep_prob"] == 0.5
    assert content["arguments"]["steps"] == "1,4"


def test_a_trainers_output_folder_opens_by_its_checkpoints(run, table):
    found = compute(Run(run.path / "checkpoints"), measures=["entropy"])
    assert set(found["step"]) <= set(range(7)) and len(found) > 0
    for row in found.itertuples():
        chosen = (table["step"] == row.step) & (table["module"] == row.module)
        chosen &= (table["matrix"] == row.matrix) & (table["measure"] == "entropy")
        assert table.loc[chosen, "value"].item() == pytest.approx(row.value, rel=1e-8)


def test_a_single_measure_needs_no_list(run):
    alone = compute(run, measures="entropy")
    pd.testing.assert_frame_equal(alone, compute(run, measures=["entropy"]))
    with pytest.raises(UserError, match="unknown measure entropi:"):
        compute(run, measures="entropi")


def test_an_update_that_cancels_has_rank_zero(cancelled):
    """PiSSA saved at step 0 for the original base: [B, -B] [A; A]."""
    values = compute(Run(cancelled)).set_index("matrix")["value"]
    assert (values["update"] == 0).all()
    assert (values["A"] > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "direction only"),
        ({"init_lora_weights": "pissa"}, "not converted"),
        ({"init_lora_weights": "olora"}, "not converted"),
    ],
)
def test_a_product_that_is_not_the_update_is_called_that(options, said, command, tmp_path):
    model = tiny_lora(trained=True, **options)
    model.save_pretrained(tmp_path / "adapter")
    options = ("--out", tmp_path, "--format", "png", "--measures", "entropy")
    done = command("effective_rank", "--run", tmp_path / "adapter", *options)
    assert done.code == 0, done.err
    assert said in done.out
    table = pd.read_parquet(tmp_path / "effective_rank.parquet")
    assert set(table["matrix"]) == {"product", "A", "B"}
    assert table.loc[table["matrix"] == "product", "remark"].str.contains(said).all()
    assert (table.loc[table["matrix"] != "product", "remark"] == "").all()
    assert said in json.dumps(json.loads((tmp_path / "effective_rank.json").read_text()))


def test_a_recorded_run_with_a_split_base_has_its_true_update(tmp_path):
    """PiSSA starts from B0 A0, taken out of the base: the update is B A - B0 A0."""
    Trainer(
        model=tiny_lora(init_lora_weights="pissa"),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, report_to=[], disable_tqdm=True
        ),
        train_dataset=[{"input_ids": ids, "labels": ids} for ids in batch()["input_ids"]],
        callbacks=[SubspaceRecorder(tmp_path / "pissa", snapshots="every:1")],
    ).train()
    run = Run(tmp_path / "pissa")
    table = compute(run)
    assert set(table["matrix"]) == {"update", "A", "B"}
    assert not any("product" in key for key in summarize(table))
    start = table[(table["step"] == 0) & (table["matrix"] == "update")]
    assert (start["value"] == 0).all()
    for module in run.modules["module"]:
        (B0, A0, scaling), (B, A, _) = (dense(run, step, module) for step in (0, 2))
        truth = by_definition(torch.linalg.svdvals(scaling * (B @ A - B0 @ A0)).numpy())
        chosen = (table["step"] == 2) & (table["module"] == module) & (table["matrix"] == "update")
        found = table[chosen].set_index("measure")["value"]
        for measure in ("entropy", "stable", "participation"):
            assert found[measure] == pytest.approx(truth[measure], rel=1e-5)
        assert found["numerical"] == 8  # of 2 r
