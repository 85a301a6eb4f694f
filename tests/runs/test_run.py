"""Reading parts of a run: masks of all modules at once, some steps and modules, changing ranks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.module_table import MODULE_COLUMNS
from subspace_lab.recording.writer import RunWriter
from subspace_lab.runs import core_batches
from subspace_lab.runs.opening import open_runs
from subspace_lab.runs.run import Run
from subspace_lab.runs.stored_cores import pack_triangle
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train

RANKS = {"layers.0.q_proj": 3, "layers.0.v_proj": 10, "layers.1.q_proj": 3, "layers.1.v_proj": 10}
STEPS = range(1, 13)


@pytest.fixture
def masks() -> dict[int, np.ndarray]:
    """Draw the masks (T, M, r) of the modules of each rank."""
    rng = np.random.default_rng(0)
    return {rank: rng.random((len(STEPS), 2, rank)) < 0.5 for rank in (3, 10)}


@pytest.fixture
def mixed(tmp_path, masks) -> Run:
    """Write a run of two ranks in three chunks; R starts with the step and the module."""
    rows = [(name, int(name[7]), name[9:], 20, 30, r, 0.5) for name, r in RANKS.items()]
    writer = RunWriter(tmp_path / "run", {}, pd.DataFrame(rows, columns=MODULE_COLUMNS))
    for place, step in enumerate(STEPS):
        arrays = {}
        for rank in (3, 10):
            R = torch.zeros(2, rank, rank, dtype=torch.float64)
            R[:, 0, 0], R[:, 0, 1] = step, torch.arange(2.0)
            arrays |= {f"r{rank}/{side}.R": pack_triangle(R) for side in ("row", "column")}
        writer.add_core(step, arrays)
        writer.add_masks(step, {rank: drawn[place] for rank, drawn in masks.items()})
        if step % 5 == 0:
            writer.flush(wait=True)
    writer.close()
    return Run(tmp_path / "run")


def test_masks_of_a_rank_are_those_of_its_modules_one_by_one(mixed, masks):
    for rank, drawn in masks.items():
        steps, found = mixed.masks_of_rank(rank)
        assert steps.tolist() == list(STEPS)
        assert found.dtype == np.bool_ and np.array_equal(found, drawn)
        for place, module in enumerate(name for name, r in RANKS.items() if r == rank):
            assert np.array_equal(mixed.masks(module)[1], drawn[:, place])
            assert np.array_equal(mixed.mask(7, module), drawn[6, place])


@pytest.mark.parametrize("cores_per_batch", [1, 5, 512])
@pytest.mark.parametrize("steps", [None, [2, 5, 6, 12], [4]])
@pytest.mark.parametrize(
    "modules", [None, ["layers.1.v_proj", "layers.0.q_proj"], ["layers.1.q_proj"]]
)
def test_chosen_steps_and_modules_are_read_once(
    mixed, steps, modules, cores_per_batch, monkeypatch
):
    monkeypatch.setattr(core_batches, "CORES_PER_BATCH", cores_per_batch)
    met = []
    for batch in mixed.cores(steps=steps, modules=modules, displacements=False):
        assert len(batch.steps) * len(batch.modules) <= max(cores_per_batch, len(batch.modules))
        for i, step in enumerate(batch.steps.tolist()):
            for j, module in enumerate(batch.modules["module"]):
                R = batch.core[i, j].row.R
                assert len(R) == RANKS[module]
                assert R[0, :2].tolist() == [step, int(module[7])]
                met.append((step, module))
    assert sorted(met) == sorted((s, m) for s in steps or STEPS for m in modules or RANKS)


def write_adalora(folder, ranks: dict[str, int]) -> None:
    """Write an AdaLoRA adapter whose pruned modules have these ranks."""
    folder.mkdir(parents=True)
    pattern = {
        f"{name}.lora_E": [True] * rank + [False] * (4 - rank) for name, rank in ranks.items()
    }
    config = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 4, "rank_pattern": pattern}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, rank in ranks.items():
        for letter, shape in (("A", (rank, 9)), ("B", (7, rank)), ("E", (rank, 1))):
            tensors[f"base_model.model.{name}.lora_{letter}"] = torch.randn(shape)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("modules_per_batch", [1, 2, 8])
def test_ranks_that_change_between_snapshots(tmp_path, monkeypatch, modules_per_batch):
    monkeypatch.setattr(core_batches, "MODULES_PER_BATCH", modules_per_batch)
    names = [f"layers.{layer}.q" for layer in range(4)]
    ranks = {
        1: dict.fromkeys(names, 4),
        2: dict(zip(names, (3, 2, 3, 3), strict=True)),
    }
    for step, of_step in ranks.items():
        write_adalora(tmp_path / f"checkpoint-{step}", of_step)
    run = Run(tmp_path)
    found: dict[int, dict[str, int]] = {}
    for batch in run.cores():
        assert batch.core.row.R.shape[:2] == (1, len(batch.modules))
        assert len(batch.modules) <= modules_per_batch
        for place, row in enumerate(batch.modules.itertuples()):
            step = int(batch.steps[0])
            assert row.r == batch.core.row.R.shape[-1]
            assert row.module not in found.setdefault(step, {})
            found[step][row.module] = int(row.r)
            factors = run.factors(step, row.module)
            truth = torch.linalg.svdvals(factors.scaling * factors.B.double() @ factors.A.double())
            sigma = batch.core[0, place].singular_values()
            torch.testing.assert_close(sigma, truth[: row.r])
    assert found == ranks


def test_a_run_without_masks_says_so(tmp_path):
    write_adalora(tmp_path / "checkpoint-1", {"layers.0.q": 4})
    with pytest.raises(UserError, match="no step masks"):
        Run(tmp_path).masks("layers.0.q")


@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_cores_from_snapshots_of_a_split_base_are_those_of_what_was_trained(method, tmp_path):
    """The snapshot is valid on the original base, with twice the rank; training moved r of it."""
    config = TrainConfig(
        method=method, rank=2, steps=2, train_size=16, eval_split="none", snapshots="every:1"
    )
    for cores in ("full", "never"):
        train(replace(config, cores=cores), tmp_path / cores)
    recorded, derived = Run(tmp_path / "full"), Run(tmp_path / "never")
    for step in (0, 2):
        for module in recorded.modules["module"]:
            one, two = recorded.core(step, module), derived.core(step, module)
            torch.testing.assert_close(one.row.R, two.row.R, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(one.column.R, two.column.R, rtol=1e-6, atol=1e-9)


def test_a_run_named_in_many_ways_is_opened_once(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "run [1]")
    monkeypatch.chdir(tmp_path)
    names = ["run [1]", "run [1]/", str(tmp_path / "run [1]"), "run*"]
    assert [found.path for found in open_runs(names)] == [Path("run [1]")]


def test_what_a_shell_names_beside_runs_is_named_and_skipped(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run.path, tmp_path / "a")
    shutil.copytree(next((run.path / "snapshots").iterdir()), tmp_path / "adapter")
    (tmp_path / "logs").mkdir()
    (tmp_path / "results.parquet").touch()
    monkeypatch.chdir(tmp_path)
    expanded = sorted(path.name for path in tmp_path.iterdir())
    assert [found.path.name for found in open_runs(expanded)] == ["a", "adapter"]
    assert capsys.readouterr().err == "skipped, since they hold no run: logs, results.parquet\n"
    open_runs(["*"])
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="logs"):
        open_runs(["logs", "results.parquet"])
    with pytest.raises(UserError, match=r"there is no b in the current folder"):
        open_runs(["a", "./b"])  # which no shell makes of a glob


def test_a_damaged_run_among_others_is_not_skipped(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_runs([str(run.path), str(tmp_path / "damaged")])


@pytest.fixture
def masked(mixed, masks) -> Run:
    """Give the run of three chunks a description of its masks: one a step."""
    description = mixed.description | {"mask": {"keep_prob": 0.5}}
    files.write_json(mixed.path / "run.json", description)
    return Run(mixed.path)


def test_masks_of_a_missing_chunk_are_missing_and_others_stay_with_their_steps(masked, masks):
    assert masked.steps_without_mask == []
    (masked.path / "masks" / "steps-00000001-00000005.safetensors").unlink()
    assert masked.steps_without_mask == [1, 2, 3, 4, 5]
    assert masked.mask_steps == [6, 7, 8, 9, 10, 11, 12]
    assert np.array_equal(masked.mask(7, "layers.1.v_proj"), masks[10][6, 1])
    with pytest.raises(UserError, match="no mask of step 5"):
        masked.mask(5, "layers.1.v_proj")
    shutil.rmtree(masked.path / "masks")
    assert masked.steps_without_mask == list(STEPS)
    with pytest.raises(UserError, match="masks was deleted: restore it"):
        masked.masks_of_rank(3)


@pytest.mark.parametrize("kind", ["cores", "masks"])
def test_overlapping_chunks_are_refused(mixed, kind):
    chunk = mixed.path / kind / "steps-00000006-00000010.safetensors"
    shutil.copy(chunk, chunk.with_name("steps-00000008-00000010.safetensors"))
    with pytest.raises(UserError, match=r"steps-00000008-00000010\.safetensors both hold step 6"):
        list(mixed.cores()) if kind == "cores" else mixed.mask_steps
    assert Run(mixed.path).modules["module"].tolist() == list(RANKS)
