"""Loops of one's own: what start, step and finish record equals what happened to the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributed

from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from tests.tiny import batch, tiny_lora

Q = "model.layers.0.self_attn.q_proj"


class Loop:
    """A plain PyTorch loop on a tiny masked LoRA that keeps the weights of Q around each step."""

    def __init__(self, folder, *, seed=1, rank=4, **options) -> None:
        self.model = tiny_lora(rank=rank).train()
        self.mask = RankMask(0.5, seed=seed).attach(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2)
        self.recorder = SubspaceRecorder(folder, **options)
        self.layer = next(m for m in lora_modules(self.model) if m.name == Q)
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.after: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(w.detach().double() for w in (self.layer.B, self.layer.A))

    def take(self, t: int, *, micro_batches: int = 1, step: bool = True, **measured):
        for i in range(micro_batches):
            loss = self.model(**batch(seed=10 * t + i)).loss
            loss.backward()
        self.before[t] = self.weights()
        if step:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.after[t] = self.weights()
        return self.recorder.step(t, loss=loss, **measured)

    def steps(self, first: int, last: int, **options) -> None:
        for t in range(first, last + 1):
            self.take(t, **options)

    def assert_last_motion(self, run: Run, t: int) -> None:
        """The displacement since the previous step is that of the optimizer's step t."""
        core = run.core(t, Q)
        pairs = zip(self.after[t], self.before[t], (core.column, core.row), strict=True)
        for after, before, frame in pairs:
            moved = torch.linalg.matrix_norm(after - before)
            torch.testing.assert_close(frame.previous.norm, moved, rtol=1e-6, atol=1e-12)


def test_it_records_steps_masks_losses_and_the_last_adapter(tmp_path):
    loop = Loop(tmp_path / "run", cores="every:2")
    with loop.recorder.start(loop.model, optimizer=loop.optimizer, steps=5):
        loop.steps(1, 5, micro_batches=2, learning_rate=1e-2)
    run = Run(tmp_path / "run")
    assert run.finished and run.steps == [0, 2, 4, 5] and sorted(run.snapshots) == [0, 5]
    assert run.description["planned_steps"] == 5
    assert run.description["optimizer"]["name"] == "AdamW"
    assert run.metrics.set_index("step")[["loss", "learning_rate"]].notna().all(axis=None)
    for t in (2, 4, 5):
        loop.assert_last_motion(run, t)
    steps, masks = run.masks(Q)
    assert steps.tolist() == [1, 2, 3, 4, 5]
    expected = [loop.mask.law.step_mask(t, Q, 4).tolist() for t in range(1, 6)]
    assert masks.tolist() == expected
    for seen in run.gates:  # what the layers really did
        for t, gates in zip(seen.steps.tolist(), seen.gates, strict=True):
            kept = torch.from_numpy(run.mask(t, seen.module)).float()
            torch.testing.assert_close(gates, (2.0 * kept).expand_as(gates))
    assert run.gates
    B, A = loop.after[5]
    torch.testing.assert_close(run.factors(5, Q).B.double(), B, rtol=0, atol=0)
    torch.testing.assert_close(run.factors(5, Q).A.double(), A, rtol=0, atol=0)


def test_weights_that_are_changed_between_steps_are_no_motion_of_the_step(tmp_path):
    loop = Loop(tmp_path / "run")
    with loop.recorder.start(loop.model):
        loop.steps(1, 2)
        with torch.no_grad():
            loop.layer.B.zero_()  # as a restart does
        loop.steps(3, 3)
    loop.assert_last_motion(Run(tmp_path / "run"), 3)


def test_a_step_that_a_gradient_scaler_skips_is_no_motion_and_uses_its_masks_up(tmp_path):
    loop = Loop(tmp_path / "run")
    with loop.recorder.start(loop.model):
        loop.steps(1, 1)
        loop.take(2, step=False)
        loop.steps(3, 3)
    run = Run(tmp_path / "run")
    assert run.core(2, Q).change_norm("previous") == 0
    loop.assert_last_motion(run, 3)
    masks = run.masks(Q)[1]
    assert masks.tolist() == [loop.mask.law.step_mask(t, Q, 4).tolist() for t in (1, 2, 3)]
    moved = torch.linalg.vector_norm(run.core(1, Q).column.previous.coordinates, dim=0) > 0
    assert moved.tolist() == run.mask(1, Q).tolist()


def test_a_step_with_chosen_gates_has_no_mask(tmp_path):
    loop = Loop(tmp_path / "run")
    loop.mask.checked_steps = 0
    with loop.recorder.start(loop.model):
        with loop.mask.use({m.name: torch.ones(4) for m in lora_modules(loop.model)}):
            loop.model(**batch()).loss.backward()
        loop.take(1)
        loop.take(2)
    run = Run(tmp_path / "run")
    assert run.gates_chosen and run.mask_steps == [2]


def test_an_error_interrupts_the_run_and_it_continues_as_if_nothing_had_happened(tmp_path):
    whole = Loop(tmp_path / "whole")
    with whole.recorder.start(whole.model, steps=5):
        whole.steps(1, 5)
    broken = Loop(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), broken.recorder.start(broken.model, steps=5):
        broken.steps(1, 3)
        states = [part.state_dict() for part in (broken.model, broken.optimizer)]
        states = [torch.load(save(state, tmp_path / "state.pt")) for state in states]
        broken.steps(4, 4)
        _ = 1 / 0
    assert Run(tmp_path / "run").description["status"] == "interrupted"
    assert Run(tmp_path / "run").steps == [0, 1, 2, 3, 4]

    resumed = Loop(tmp_path / "run")
    resumed.model.load_state_dict(states[0])
    resumed.optimizer.load_state_dict(states[1])
    with resumed.recorder.start(resumed.model, at=3, steps=5):
        resumed.steps(4, 5)
    run, other = Run(tmp_path / "run"), Run(tmp_path / "whole")
    assert run.finished and run.steps == other.steps and run.mask_steps == other.mask_steps
    assert run.metrics["loss"].equals(other.metrics["loss"])
    assert run.masks(Q)[1].tolist() == other.masks(Q)[1].tolist()
    for since in ("previous", "start"):
        found, expected = (r.core(5, Q).change_norm(since) for r in (run, other))
        torch.testing.assert_close(found, expected)


def save(state, path):
    torch.save(state, path)
    return path


def test_a_loss_that_is_not_finite_is_noted(tmp_path):
    loop = Loop(tmp_path / "run")
    with pytest.warns(UserWarning, match="has diverged"), loop.recorder.start(loop.model):
        loop.steps(1, 1)
        with torch.no_grad():
            loop.layer.A.fill_(math.nan)
        loop.recorder.step(2, loss=math.nan)
    assert Run(tmp_path / "run").diverged_at == loop.recorder.diverged_at == 2


def test_processes_other_than_the_first_record_nothing_and_follow_the_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    loop = Loop(tmp_path / "run", log_every=1)
    with loop.recorder.start(loop.model):
        assert loop.take(1) == {}
    assert loop.mask.step == 2 and not (tmp_path / "run").exists()


@pytest.fixture
def recorded(tmp_path):
    """A folder with the record of two steps."""
    loop = Loop(tmp_path / "run")
    with loop.recorder.start(loop.model):
        loop.steps(1, 2)
    return loop


def test_what_does_not_continue_a_record_is_refused_and_the_record_stays(recorded, tmp_path):
    folder = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    refusals = [
        (Loop(folder), 0, "choose another folder, or resume that run"),
        (recorded, 0, "make a SubspaceRecorder with another folder"),
        (Loop(folder), 3, "ends at step 2: continue from an earlier checkpoint"),
        (Loop(folder, rank=2), 2, "other adapted layers, ranks or scalings"),
        (Loop(folder, seed=2), 2, "another rank mask"),
        (Loop(tmp_path / "new"), 2, "holds no record of the steps before"),
    ]
    for loop, at, message in refusals:
        with pytest.raises(UserError, match=message) as refused:
            loop.recorder.start(loop.model, at=at)
        assert "--" not in str(refused.value) and "`" not in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("numbers", [[0], [1, 1], [1, 2, 1]])
def test_steps_are_counted_from_1_upwards(tmp_path, numbers):
    loop = Loop(tmp_path / "run")
    with pytest.raises(UserError, match="from 1"), loop.recorder.start(loop.model):
        for t in numbers:
            loop.take(t)


def test_the_arguments_are_checked(tmp_path):
    with pytest.raises(UserError, match="`log_every` must be at least 1"):
        SubspaceRecorder(tmp_path, log_every=0)
    with pytest.raises(UserError, match="none are recorded"):
        SubspaceRecorder(tmp_path, log_every=1, cores="never")
    engine = type("DeepSpeedEngine", (torch.nn.Module,), {})()
    with pytest.raises(UserError, match="DeepSpeed"):
        SubspaceRecorder(tmp_path).start(engine)
