"""Weights with nan or infinities: their numbers are nan, all others stay, and both are said."""

from __future__ import annotations

import importlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

OF_CORES = ("effective_rank", "subspace_angles", "frame_drift", "regulariser")
OF_MASKS = {"kept", "next_kept", "shared", "next_step"}  # whole numbers that stay known


@pytest.fixture(scope="module", params=["nan", "inf", "-inf"])
def broken(run, tmp_path_factory, request) -> tuple[Run, set[tuple[int, str]]]:
    """Give the run with one module broken from step 4 on, and another in one side at step 5."""
    folder = tmp_path_factory.mktemp("broken") / "tiny"
    shutil.copytree(run.path, folder)
    broken = [(4, 0), (5, 0), (6, 0), (5, 1)]
    for file in (folder / "cores").iterdir():
        chunk = load_file(file)
        steps = chunk.pop("steps")
        for name, array in chunk.items():
            for step, place in broken:
                if place == 0 or name.startswith("r4/column"):
                    array[steps == step, place, ..., -1] = float(request.param)
        save_file({"steps": steps, **chunk}, file)
    return Run(folder), {(step, run.modules["module"][place]) for step, place in broken}


@pytest.mark.parametrize("name", OF_CORES)
def test_only_the_numbers_of_broken_cores_are_nan(run, broken, name):
    analysis = importlib.import_module(f"analyses.{name}")
    damaged, where = broken
    whole, found = analysis.compute(run), analysis.compute(damaged)
    keys = ["step", "module"]
    pairs = pd.MultiIndex.from_frame(found[keys].astype({"module": str}))
    bad = pairs.isin(where)
    assert 0 < bad.sum() < len(bad) and len(whole) == len(found)
    pd.testing.assert_frame_equal(found[~bad], whole[~bad])
    for column in found.columns[found.dtypes.map(pd.api.types.is_float_dtype)]:
        assert found.loc[bad, column].isna().all(), column
    for column in found.select_dtypes(object):
        assert found.loc[bad, column].map(len).eq(0).all()
    assert {(step, m) for step, of_step in damaged.not_finite.items() for m in of_step} >= (
        where & set(pairs)
    )
    assert not run.not_finite
    analysis.plot(found)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Write checkpoints: 1 whole, 2 with one broken module, 3 with both; and a base."""
    folder = tmp_path_factory.mktemp("adapters") / "trainer"
    generator = torch.Generator().manual_seed(0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    for step, broken in {1: {}, 2: {0: "nan"}, 3: {0: "nan", 1: "inf"}}.items():
        tensors = {}
        for layer in range(2):
            for letter, shape in {"A": (2, 8), "B": (6, 2)}.items():
                value = torch.randn(shape, generator=generator)
                value[1, 1] = float(broken.get(layer, 1))
                tensors[f"base_model.model.layers.{layer}.q_proj.lora_{letter}.weight"] = value
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}/adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / f"checkpoint-{step}/adapter_model.safetensors")
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text("{}")
    base = {f"layers.{layer}.q_proj.weight": torch.randn(6, 8) for layer in range(2)}
    save_file(base, folder / "base/model.safetensors")
    return folder


def test_merged_spectra_of_broken_adapters(checkpoints):
    from analyses import merged_spectra

    run = Run(checkpoints)
    table = merged_spectra.compute(run, steps=[1, 2, 3], base=str(checkpoints / "base"))
    assert len(table) == 3 * 2 * 3
    for row in table.itertuples():
        broken = (row.step, row.layer) in {(2, 0), (3, 0), (3, 1)}
        own = row.matrix != "base"
        assert np.isnan(row.singular_values).all() == (broken and own)
        assert np.isfinite(row.singular_values).all() != (broken and own)
        assert np.isnan(row.update_to_base_norm) == broken
        assert np.isnan(row.intruders) == (broken or row.matrix != "merged")
    assert run.not_finite == {2: {"layers.0.q_proj"}, 3: {"layers.0.q_proj", "layers.1.q_proj"}}
    merged_spectra.plot(table[table["step"] < 3])
    with pytest.raises(UserError, match="nothing that this figure draws"):  # all broken at the end
        merged_spectra.plot(table)


def test_grassmann_of_a_broken_adapter(checkpoints):
    from analyses import grassmann

    run = Run(checkpoints)
    table = grassmann.compute(run, steps=(1, 2))
    assert set(table["module"]) == {"layers.0.q_proj", "layers.1.q_proj"}
    assert (table["phi"].isna() == (table["layer"] == 0)).all()
    grassmann.plot(table)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("effective_rank", []),
        ("merged_spectra", ["--base", "BASE"]),
        ("grassmann", ["--steps", "1,3"]),
    ],
)
def test_the_command_names_steps_and_modules(command, checkpoints, tmp_path, name, options):
    options = [checkpoints / "base" if option == "BASE" else option for option in options]
    found = command(name, "--run", checkpoints, *options, "--out", tmp_path, "--format", "svg")
    assert found.code == 0 and found.err == ""
    steps = "steps 2 to 3" if name == "effective_rank" else "step 3"
    (line,) = [line for line in found.out.splitlines() if "not finite" in line]
    assert f"at {steps}: 2 modules: layers.0.q_proj, layers.1.q_proj" in line
    (of_run,) = json.loads((tmp_path / f"{name}.json").read_text())["runs"]
    assert any("not finite" in note for note in of_run["notes"])


def test_theory_is_held_against_the_steps_before(run, broken):
    from analyses import claims, mask_theory

    damaged, where = broken
    before = mask_theory.compute(run, steps=range(min(step for step, _ in where)))
    table = mask_theory.compute(damaged)
    diverged = table["prediction"] == "weights are finite"
    assert diverged.sum() == 1 and not table.loc[diverged, "agrees"].any()
    rest = table[~diverged].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before, check_categorical=False)
    assert len(before) > 20
    claims.compute([damaged])
