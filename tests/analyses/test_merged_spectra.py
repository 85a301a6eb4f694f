from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.merged_spectra import compute, plot, summarize
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from tests.analyses.conftest import dense
from tests.analyses.test_command import assert_one_sentence
from tests.tiny import tiny_llama, tiny_lora


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Give the base of the run as a folder, and its weights by module."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_llama()
    model.save_pretrained(folder)
    return folder, {name: w.double() for name, w in model.state_dict().items()}


@pytest.fixture(scope="module")
def table(run, base) -> pd.DataFrame:
    return compute(run, steps=[0, 6], base=str(base[0]), top_k=8)


def test_spectra_equal_dense_ones(run, base, table):
    for (step, module), rows in table.groupby(["step", "module"], observed=True):
        B, A, scaling = dense(run, step, module)
        W0, update = base[1][f"{module}.weight"], scaling * B @ A
        found = rows.set_index("matrix")["singular_values"]
        for matrix, W in {"base": W0, "merged": W0 + update, "update": update}.items():
            count = 4 if matrix == "update" else 8
            truth = torch.linalg.svdvals(W)[:count].numpy()
            np.testing.assert_allclose(found[matrix], truth, rtol=1e-6, atol=1e-12)
        ratio = float(update.norm() / W0.norm())
        assert rows["update_to_base_norm"].to_numpy() == pytest.approx(ratio, rel=1e-6)


def test_intruders_equal_those_by_definition(run, base, table):
    total = 0
    for module, rows in table[table["step"] == 6].groupby("module", observed=True):
        B, A, scaling = dense(run, 6, module)
        W0 = base[1][f"{module}.weight"]
        U0, U = (torch.linalg.svd(W).U for W in (W0, W0 + scaling * B @ A))
        truth = int(((U[:, :8].T @ U0).abs().amax(1) < 0.5).sum())
        found = rows.set_index("matrix")[["intruders", "undecided"]]
        assert tuple(found.loc["merged"]) == (truth, 0)
        assert found.loc[["base", "update"]].isna().all(axis=None)
        total += truth
    assert total > 0  # else the comparison says little
    assert table.loc[(table["step"] == 0), "intruders"].dropna().eq(0).all()


def test_the_null_is_what_the_update_does_to_a_gaussian_base(run, base, table):
    """Outliers of a wide Gaussian base with the same update, by a dense SVD."""
    merged = table[(table["matrix"] == "merged") & (table["step"] == 6)]
    counts = 0
    for row in merged.itertuples():
        W0 = base[1][f"{row.module}.weight"]
        (m, n), noise_std = W0.shape, float(W0.norm()) / W0.shape[0] ** 0.5
        B, A, scaling = dense(run, 6, row.module)
        sigma = torch.linalg.svdvals(scaling * B @ A)
        assert row.null_intruders == int((sigma > noise_std * (m / n) ** 0.25).sum())
        counts += row.null_intruders
        edge = noise_std * (1 + (m / n) ** 0.5)
        assert len(row.null_singular_values) == 8
        assert np.diff(row.null_singular_values).max() <= 0
        assert min(row.null_singular_values) == pytest.approx(edge)
    assert counts > 0
    others = table[table["matrix"] != "merged"]
    assert others[["null_intruders", "null_singular_values"]].isna().all(axis=None)


def test_of_a_dora_merged_is_what_peft_merges(tmp_path, base):
    model = tiny_lora(trained=True, use_dora=True)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.rand_like(parameter) + 0.5
    model.save_pretrained(tmp_path / "dora")
    merged = model.merge_and_unload().state_dict()
    table = compute(Run(tmp_path / "dora"), base=str(base[0]), top_k=8)
    for module, rows in table.groupby("module", observed=True):
        W0, W = base[1][f"{module}.weight"], merged[f"{module}.weight"].double()
        found = rows.set_index("matrix").loc["merged"]
        truth = torch.linalg.svdvals(W)[:8].numpy()
        np.testing.assert_allclose(found["singular_values"], truth, rtol=1e-5)
        assert np.isnan(found["null_intruders"])
        ratio = float((W - W0).norm() / W0.norm())
        assert found["update_to_base_norm"] == pytest.approx(ratio, rel=1e-5)


def test_the_last_adapter_is_the_default_and_the_update_needs_no_base(run):
    table = compute(run)  # the tiny model's run names no base
    assert set(table["matrix"]) == {"update"} and set(table["step"]) == {6}
    assert table["remark"].str.startswith("update only").all()
    assert table["update_to_base_norm"].isna().all()


def test_command_says_what_is_missing(command, run, base, tmp_path):
    found = command("merged_spectra", "--run", run.path, "--out", tmp_path)
    assert found.code == 0 and "update only" in found.out
    found = command("merged_spectra", "--run", run.path, "--base", tmp_path)
    assert_one_sentence(found, "config.json")
    found = command("merged_spectra", "--run", run.path, "--epsilon", 7)
    assert_one_sentence(found, "--epsilon", "[0, 1]")
    found = command("merged_spectra", "--run", run.path, "--base", base[0], "--out", tmp_path)
    assert found.code == 0 and "intruders" in found.out
    content = json.loads((tmp_path / "merged_spectra.json").read_text())
    assert content["summary"]["tiny, step 6"]["undecided"] == 0
    assert (
        pd.read_parquet(tmp_path / "merged_spectra.parquet")["singular_values"].map(len).max() == 10
    )


def test_a_module_without_a_base_weight_is_named_and_the_others_go_on(run, base, table, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "part"
    shutil.copytree(base[0], folder)
    weights = load_file(folder / "model.safetensors")
    lost, *_ = run.modules["module"]
    kept = {name: weight for name, weight in weights.items() if name != f"{lost}.weight"}
    save_file(kept, folder / "model.safetensors")
    found = compute(run, steps=[6], base=str(folder), top_k=8)
    assert set(found.loc[found["module"] == lost, "matrix"]) == {"update"}
    others = found[found["module"] != lost].set_index(["module", "matrix"])["singular_values"]
    whole = table[table["step"] == 6].set_index(["module", "matrix"])["singular_values"]
    assert len(others) == 3 * (len(run.modules) - 1)
    assert all((values == whole[place]).all() for place, values in others.items())
    assert f"no single weight {lost}.weight" in summarize(found)[f"{run.name}, base"]
    save_file({"other.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="none of the modules' weights"):
        compute(run, base=str(folder))


def test_another_base_is_refused(run, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **sizes))
    other.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="belongs to another base"):
        compute(Run(run.path), base=str(tmp_path))


def test_a_table_of_an_earlier_version_without_the_null_is_drawn(table):
    older = table.drop(columns=["null_intruders", "null_singular_values"])
    assert plot(older).axes
