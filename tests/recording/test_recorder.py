"""What cores say equals what the whole matrices say, computed densely in float64."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from peft import PeftModel
from transformers import TrainerCallback

from subspace_lab import files, linalg
from subspace_lab.errors import UserError
from subspace_lab.linalg.rank_core import frame_core
from subspace_lab.recording import writer
from subspace_lab.recording.gate_recorder import MODULES
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.opening import open_runs
from subspace_lab.runs.run import Run
from tests.recording.conftest import train_tiny
from tests.tiny import StopAfter, batch, tiny_llama


def dense(run: Run, step: int, module: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    factors = run.factors(step, module)
    return factors.B.double(), factors.A.double(), factors.scaling


def dense_angles(X: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Angles between column spaces, ascending, through orthonormal bases of dense matrices."""
    X, Y = (torch.from_numpy(scipy.linalg.orth(Z.numpy(), rcond=1e-12)) for Z in (X, Y))
    if X.shape[1] < Y.shape[1]:
        X, Y = Y, X
    cosines = torch.linalg.svdvals(X.T @ Y).clamp(max=1)
    sines = torch.linalg.svdvals(Y - X @ (X.T @ Y)).clamp(max=1).flip(0)
    return torch.atan2(sines, cosines)


def assert_same_angles(found: torch.Tensor, truth: torch.Tensor) -> None:
    """Directions that do not exist yet (B's columns before their first gradient) come as nan."""
    found = found[~found.isnan()]
    assert found.shape == truth.shape
    assert (found - truth).abs().max() < 1e-7


STEPS = [1, 2, 4, 6]


@pytest.mark.parametrize("step", STEPS)
def test_singular_values_from_cores_equal_dense_ones(run, step):
    for module in run.modules["module"]:
        B, A, scaling = dense(run, step, module)
        core, mask = run.core(step, module), torch.from_numpy(run.mask(step, module))
        for kept in (None, mask):
            D = torch.eye(4).double() if kept is None else torch.diag(kept.double())
            truth = torch.linalg.svdvals(scaling * B @ D @ A)[:4]
            found = core.singular_values(kept)
            assert (found - truth).abs().max() <= 1e-9 * truth[0]
            dense_norm = torch.linalg.matrix_norm(scaling * B @ A)
        torch.testing.assert_close(core.norm(), dense_norm, rtol=1e-9, atol=0)


@pytest.mark.parametrize("step", STEPS)
def test_step_norms_from_cores_equal_dense_ones(run, step):
    for module in run.modules["module"]:
        B, A, scaling = dense(run, step, module)
        core = run.core(step, module)
        for since, earlier in (("previous", step - 1), ("start", 0)):
            B0, A0, _ = dense(run, earlier, module)
            pairs = [
                (core.change_norm(since), torch.linalg.matrix_norm(scaling * (B @ A - B0 @ A0))),
                (core.row.displacement(since).norm, torch.linalg.matrix_norm(A - A0)),
                (core.column.displacement(since).norm, torch.linalg.matrix_norm(B - B0)),
            ]
            for found, truth in pairs:
                torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("step", STEPS[1:])
def test_angles_from_cores_equal_dense_ones(run, step):
    for module in run.modules["module"]:
        B, A, _ = dense(run, step, module)
        core, mask = run.core(step, module), torch.from_numpy(run.mask(step, module))
        for frame, X, side in ((core.row, A.T, 1), (core.column, B, 0)):
            for since, earlier in (("previous", step - 1), ("start", 0)):
                then = dense(run, earlier, module)[side]
                then = then.T if side else then
                if not then.any():  # B is zero at the start and spans nothing
                    continue
                found = linalg.principal_angles(frame.now(), frame.before(since))
                assert_same_angles(found, dense_angles(X, then))
                if mask.any() and then[:, mask].any():
                    masked = linalg.principal_angles(
                        frame.now()[:, mask], frame.before(since)[:, mask]
                    )
                    assert_same_angles(masked, dense_angles(X[:, mask], then[:, mask]))


def test_a_tiny_step_keeps_its_relative_accuracy():
    torch.manual_seed(0)
    X = torch.randn(50, 3, dtype=torch.float64)
    step = 1e-10 * torch.randn(50, 3, dtype=torch.float64)
    frame = frame_core(X + step, X, torch.zeros_like(X))
    moved = X + step - X  # what the addition left of the step
    torch.testing.assert_close(frame.previous.norm, moved.norm(), rtol=1e-12, atol=0)
    Q = torch.linalg.qr(X).Q
    sines = torch.linalg.svdvals(
        (moved - Q @ (Q.T @ moved)) @ torch.linalg.inv(torch.linalg.qr(X).R)
    )
    angles = linalg.principal_angles(frame.now(), frame.before("previous"))
    torch.testing.assert_close(angles.flip(0), sines, rtol=1e-4, atol=0)


def test_masks_are_the_law_s_and_masked_directions_of_the_first_step_stand_still(run):
    for module in run.modules["module"]:
        steps, masks = run.masks(module)
        assert steps.tolist() == run.mask_steps == [1, 2, 3, 4, 5, 6]
        core = run.core(1, module)
        movement = torch.linalg.vector_norm(core.column.previous.coordinates, dim=0)
        assert np.array_equal(movement.numpy() > 0, masks[0])


def test_the_gate_recorder_saw_the_masks_that_the_run_claims(run):
    seen_steps = [step for seen in run.gates for step in seen.steps.tolist()]
    assert sorted(seen_steps) == sorted([1, 2, 3, 4, 5, 6] * MODULES)
    for seen in run.gates:
        for step, gates in zip(seen.steps.tolist(), seen.gates, strict=True):
            expected = 2.0 * torch.from_numpy(run.mask(step, seen.module)).float()
            torch.testing.assert_close(gates, expected.expand_as(gates))


def test_the_optimizer_is_recorded_as_it_was(run):
    optimizer = run.description["optimizer"]
    assert optimizer["name"] == "AdamW" and optimizer["betas"] == [0.9, 0.999]
    assert optimizer["weight_decay"] == 0 and optimizer["dtypes"] == ["float32"]


def test_metrics_have_a_row_per_step(run):
    metrics = run.metrics.set_index("step")
    columns = ["loss", "learning_rate", "gradient_norm", "seconds"]
    assert metrics.loc[1:6, columns].notna().all().all()


def test_a_snapshot_loads_in_stock_peft_and_merges(run):
    loaded = PeftModel.from_pretrained(tiny_llama(), run.path / "snapshots" / "step-000006").eval()
    unmerged = loaded(**batch()).logits
    assert not torch.allclose(unmerged, tiny_llama().eval()(**batch()).logits, atol=1e-3)
    merged = loaded.merge_and_unload()(**batch()).logits
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_been_stopped(run, tmp_path):
    train_tiny(tmp_path / "resumed", steps=6)
    # Forget everything after step 4, as after a kill, and go on from there.
    description = files.read_json(tmp_path / "resumed" / "run.json") | {"status": "running"}
    files.write_json(tmp_path / "resumed" / "run.json", description)
    train_tiny(tmp_path / "resumed", steps=6, resume=4)
    resumed = Run(tmp_path / "resumed")
    assert resumed.steps == run.steps and resumed.mask_steps == run.mask_steps
    assert resumed.metrics["loss"].equals(run.metrics["loss"])
    for module in run.modules["module"]:
        assert np.array_equal(resumed.masks(module)[1], run.masks(module)[1])
        for since in ("previous", "start"):
            found, expected = (r.core(6, module).change_norm(since) for r in (resumed, run))
            torch.testing.assert_close(found, expected)


def test_a_run_is_readable_while_it_is_written_and_damage_is_named(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "metrics.parquet").unlink()
    chunk = next((copy / "cores").iterdir())
    (copy / "cores" / f".{chunk.name}.1.unfinished").write_bytes(b"half")
    assert Run(copy).steps == run.steps
    for size in (0, 5, 100, chunk.stat().st_size - 1):
        chunk.write_bytes(next((run.path / "cores").iterdir()).read_bytes()[:size])
        with pytest.raises(UserError, match=chunk.name):
            list(Run(copy).cores())
    chunk.unlink()
    with files.open_tensors(run.path / "cores" / chunk.name) as whole:
        lost = set(whole.get_tensor("steps").tolist())
    assert Run(copy).steps == sorted(set(run.steps) - lost)


def test_a_run_that_stops_early_keeps_its_trained_adapter(tmp_path):
    schedule = {"snapshots": "never", "cores": "never"}
    model = train_tiny(tmp_path / "run", callbacks=[StopAfter(3)], **schedule)
    run = Run(tmp_path / "run")
    assert sorted(run.snapshots) == [0, 3] and run.finished
    for module in run.modules["module"]:
        trained = model.get_submodule(f"base_model.model.{module}").lora_B["default"].weight
        torch.testing.assert_close(run.factors(3, module).B, trained.detach())


class WaitForTheDisk(TrainerCallback):
    """Before the second step, waits until the first is on disk, and keeps what is there."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step != 1:
            return
        for _ in range(500):
            if (self.folder / "metrics.parquet").exists():
                break
            time.sleep(0.02)
        run = Run(self.folder)
        self.found = (run.metrics["loss"].notna().sum(), run.steps, run.mask_steps, run.finished)


def test_steps_reach_the_disk_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SECONDS_BETWEEN_FLUSHES", 0.0)
    disk = WaitForTheDisk(tmp_path / "run")
    train_tiny(tmp_path / "run", callbacks=[disk])
    assert disk.found == (1, [0, 1], [1], False)


def test_before_the_first_metrics_there_is_no_table_of_them(tmp_path):
    early = writer.RunWriter(tmp_path / "run", {}, pd.DataFrame())
    early.flush(wait=True)
    assert not (tmp_path / "run" / "metrics.parquet").exists()
    early.add_metrics(1, {"loss": 2.0})
    early.close()
    assert Run(tmp_path / "run").metrics.to_dict("records") == [{"step": 1, "loss": 2.0}]


def test_what_run_and_recorder_refuse(run, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        train_tiny(run.path)
    assert Run(run.path).steps == run.steps
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train_tiny(tmp_path)
    with pytest.raises(UserError, match="set `cores` to never"):
        SubspaceRecorder(tmp_path / "new", modules=run.modules)
    with pytest.raises(UserError):
        Run(tmp_path)
    with pytest.raises(UserError, match="no run matches"):
        open_runs([str(tmp_path / "*")])
    with pytest.raises(UserError, match="no core of step 99"):
        run.core(99, run.modules["module"][0])
    with pytest.raises(UserError, match="no module 'nothing'"):
        run.core(1, "nothing")
