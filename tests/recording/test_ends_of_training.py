"""However a training ends, its last step is recorded, and what the record says of it is true."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.recording import writer
from subspace_lab.recording.divergence import true_loss
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from tests.tiny import StopAfter, batch, tiny_llama

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


class Weights(TrainerCallback):
    """Keeps B and A of one module after each step."""

    def __init__(self, adapter: str = "default") -> None:
        self.adapter = adapter
        self.after: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def on_step_end(self, args, state, control, *, model, **kwargs):
        layer = model.get_submodule(f"base_model.model.{Q}")
        pair = layer.lora_B[self.adapter].weight, layer.lora_A[self.adapter].weight
        self.after[state.global_step] = tuple(weight.detach().clone() for weight in pair)


def make_trainer(folder, *callbacks, kind=Trainer, adapter="default", options=None, **arguments):
    """Give a Trainer of a tiny LoRA whose recorder, the first callback, writes into `folder`."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), config, adapter_name=adapter)
    recorder = SubspaceRecorder(folder, adapter=adapter, **(options or {}))
    defaults = {
        "output_dir": str(folder.parent / "trainer"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    rows = [{"input_ids": row, "labels": row} for row in batch(rows=16)["input_ids"]]
    return kind(
        model=model,
        args=TrainingArguments(**(defaults | arguments)),
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=[recorder, *callbacks],
    )


class Worsening(Trainer):
    """Evaluations come out as 1, 2, 3, ..., so that the first model is the best."""

    def evaluate(self, *args, **kwargs):
        self.losses = getattr(self, "losses", itertools.count(1))
        metrics = {"eval_loss": float(next(self.losses))}
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@pytest.mark.parametrize(
    ("evaluation", "save", "best", "last"),
    [("steps", "steps", 2, 6), ("epoch", "epoch", 4, 12), ("epoch", "best", 4, 12)],
)
def test_early_stopping_keeps_the_last_adapter_and_the_best(tmp_path, evaluation, save, best, last):
    weights = Weights()
    trainer = make_trainer(
        tmp_path / "run", weights, EarlyStoppingCallback(2), kind=Worsening, max_steps=40,
        eval_strategy=evaluation, eval_steps=2, save_strategy=save, save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
        options={"cores": "every:5"},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == last
    run = Run(tmp_path / "run")
    assert run.finished and run.best_step == best
    for step in (best, last):
        B, A = weights.after[step]
        torch.testing.assert_close(run.factors(step, Q).B, B, rtol=0, atol=0)
        torch.testing.assert_close(run.factors(step, Q).A, A, rtol=0, atol=0)
    assert run.steps[-1] == last
    B, A = weights.after[last]
    truth = torch.linalg.svdvals(2.0 * B.double() @ A.double())[:4]  # alpha / r = 8 / 4
    torch.testing.assert_close(run.core(last, Q).singular_values(), truth, rtol=1e-6, atol=1e-12)
    trainer.evaluate()  # of the best model, which the Trainer has loaded
    losses = run.metrics.set_index("step")["eval_loss"].dropna()
    assert losses.to_dict() == {best: 4.0, (best + last) // 2: 2.0, last: 3.0}


def test_the_core_of_a_stop_has_its_own_displacement(tmp_path):
    weights = Weights()
    make_trainer(tmp_path / "run", weights, StopAfter(3), options={"cores": "every:2"}).train()
    run = Run(tmp_path / "run")
    assert run.steps == [0, 2, 3]
    (B, A), (B0, A0) = weights.after[3], weights.after[2]
    core = run.core(3, Q)
    truth = torch.linalg.matrix_norm(B.double() - B0.double())
    torch.testing.assert_close(core.column.previous.norm, truth, rtol=1e-6, atol=0)
    truth = torch.linalg.matrix_norm(A.double() - A0.double())
    torch.testing.assert_close(core.row.previous.norm, truth, rtol=1e-6, atol=0)


class Break(TrainerCallback):
    """Makes a weight nan after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step:
            layer = model.get_submodule(f"base_model.model.{V}")
            layer.lora_B["default"].weight.data[0, 0] = math.nan


@pytest.mark.filterwarnings("ignore:the run .* has diverged")
@pytest.mark.parametrize("nan_filter", [True, False])
@pytest.mark.parametrize(("logging", "accumulation"), [(1, 1), (1, 2), (2, 1)])
def test_a_diverged_run_has_no_loss_of_zero(tmp_path, nan_filter, logging, accumulation):
    trainer = make_trainer(
        tmp_path / "run", Break(2), logging_nan_inf_filter=nan_filter, logging_steps=logging,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    run = Run(tmp_path / "run")
    assert run.finished and run.diverged_at == 2 + logging
    column = "loss" if logging == 1 else "window_loss"
    losses = run.metrics.set_index("step")[column]
    finite = losses[losses.notna()]
    assert finite.index.tolist() == [1, 2][logging - 1 :]
    assert (finite > 1).all()


@pytest.mark.filterwarnings("ignore:the run .* has diverged")
def test_a_run_that_diverges_in_its_last_step_says_so(tmp_path):
    trainer = make_trainer(tmp_path / "run", Break(6))
    trainer.train()
    assert Run(tmp_path / "run").diverged_at == 6
    assert Run(tmp_path / "run").metrics["loss"].iloc[1:].notna().all()


def test_a_loss_is_only_doubted_where_the_filter_may_have_replaced_it():
    model = torch.nn.Linear(1, 1)
    assert true_loss(2.0, math.nan, model, batches=1) == 2.0  # a gradient that overflowed
    assert math.isnan(true_loss(2.0, math.inf, model, batches=2))
    assert true_loss(0.0, 0.5, model, batches=1) == 0.0  # everything is learned by heart
    assert math.isnan(true_loss(0.0, math.nan, model, batches=1))
    model.weight.data.fill_(math.nan)
    assert math.isnan(true_loss(0.0, None, model, batches=1))


def test_a_loss_that_is_logged_now_and_then_is_a_mean(tmp_path):
    make_trainer(tmp_path / "each" / "run").train()
    make_trainer(tmp_path / "some" / "run", logging_steps=3).train()
    each, some = (Run(tmp_path / name / "run").metrics for name in ("each", "some"))
    assert "window_loss" not in each
    assert some["loss"].isna().all()
    losses = each.set_index("step")["loss"]
    means = some.set_index("step")["window_loss"].dropna()
    assert means.to_dict() == pytest.approx({3: losses.loc[1:3].mean(), 6: losses.loc[4:6].mean()})


def test_an_evaluation_after_training_is_that_of_the_last_step(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    metrics = trainer.evaluate()
    run = Run(tmp_path / "run")
    assert run.metrics.set_index("step")["eval_loss"].dropna().to_dict() == {
        6: pytest.approx(metrics["eval_loss"])
    }
    assert run.metrics["loss"].notna().all() and run.finished


class TooLarge(Trainer):
    """Runs out of memory in its second step, unless a batch has two rows."""

    def training_step(self, *args, **kwargs):
        if self._train_batch_size > 2 and self.state.global_step == 1:
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(*args, **kwargs)


def test_a_smaller_batch_starts_the_record_again(tmp_path):
    weights = Weights()
    trainer = make_trainer(
        tmp_path / "run", weights, kind=TooLarge, auto_find_batch_size=True,
        options={"snapshots": "every:1", "cores": "every:2"},
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    trainer.train()
    run = Run(tmp_path / "run")
    assert run.finished and run.steps == [0, 2, 4, 6]
    assert run.metrics["step"].tolist() == sorted(run.snapshots)[1:] == [1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(run.factors(6, Q).B, weights.after[6][0], rtol=0, atol=0)
    assert not run.factors(0, Q).B.equal(torch.zeros(32, 4))  # the step that fitted was taken


def test_a_second_training_is_refused_and_the_first_stays(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run.*for each training"):
        trainer.train()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_an_adapter_of_another_name_is_read_back_and_resumed(tmp_path):
    weights, whole = Weights("policy"), {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path / "run", weights, StopAfter(2), adapter="policy", **whole).train()
    run = Run(tmp_path / "run")
    torch.testing.assert_close(run.factors(2, Q).B, weights.after[2][0], rtol=0, atol=0)
    assert not list((tmp_path / "run").rglob("policy"))
    resumed = make_trainer(tmp_path / "run", weights, adapter="policy", **whole)
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    run = Run(tmp_path / "run")
    assert run.steps == list(range(7))
    B0, B = run.factors(0, Q).B.double(), weights.after[6][0].double()
    moved = torch.linalg.matrix_norm(B - B0)
    torch.testing.assert_close(run.core(6, Q).column.start.norm, moved, rtol=1e-6, atol=0)


class Delete(TrainerCallback):
    """Deletes a folder after the second step."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_folder_that_vanishes_ends_the_training(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(writer, "SECONDS_BETWEEN_FLUSHES", seconds)
    trainer = make_trainer(tmp_path / "run", Delete(tmp_path / "run"))
    with pytest.raises(UserError, match="run was moved or deleted"):
        trainer.train()
    assert trainer.state.global_step == (2 if seconds == 0.0 else 6)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(tensors, path):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr("subspace_lab.files.save_file", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/run/.*s.safetensors"):
        trainer.train()
    assert not Run(tmp_path / "run").finished


def test_masks_are_on_disk_before_their_cores(tmp_path, monkeypatch):
    from tests.recording.conftest import train_tiny

    monkeypatch.setattr(writer, "STEPS_PER_CHUNK", 4)
    monkeypatch.setattr(writer, "CORE_VALUES_PER_CHUNK", 1)
    masked: set[int] = set()
    write = files.write_tensors

    def check(path, tensors):
        steps = set(tensors["steps"].tolist()) if "steps" in tensors else set()
        if path.parent.name == "masks":
            masked.update(steps)
        if path.parent.name == "cores":
            assert steps - {0} <= masked
        write(path, tensors)

    monkeypatch.setattr(files, "write_tensors", check)
    train_tiny(tmp_path / "run")
    assert Run(tmp_path / "run").mask_steps == [1, 2, 3, 4, 5, 6]


class Interrupt(TrainerCallback):
    """Presses Ctrl-C before the fourth step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_script_that_is_interrupted_leaves_a_complete_record(tmp_path, monkeypatch):
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(writer.atexit, "register", at_exit.append)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "run", Interrupt()).train()
    for function in at_exit:
        function()
    run = Run(tmp_path / "run")
    assert run.description["status"] == "interrupted"
    assert run.steps == [0, 1, 2, 3] and run.metrics["step"].tolist() == [1, 2, 3]


def test_a_finished_run_stays_so_at_exit(tmp_path, monkeypatch):
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(writer.atexit, "register", at_exit.append)
    monkeypatch.setattr(writer.atexit, "unregister", at_exit.remove)
    make_trainer(tmp_path / "run").train()
    assert not at_exit and Run(tmp_path / "run").finished


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2}


def assert_same_record(folder, whole) -> None:
    """A run that was continued is what it had been without the stop."""
    run, expected = Run(folder), Run(whole)
    assert run.finished and run.steps == expected.steps
    assert run.metrics["loss"].equals(expected.metrics["loss"])
    for since in ("previous", "start"):
        found, truth = (r.core(6, Q).change_norm(since) for r in (run, expected))
        torch.testing.assert_close(found, truth)


def test_a_script_resumes_its_record_without_being_told(tmp_path):
    make_trainer(tmp_path / "whole" / "run", **CHECKPOINTS).train()
    make_trainer(tmp_path / "run", StopAfter(5), **CHECKPOINTS).train()
    make_trainer(tmp_path / "run", **CHECKPOINTS).train(resume_from_checkpoint=True)
    assert_same_record(tmp_path / "run", tmp_path / "whole" / "run")


def test_a_notebook_resumes_an_interrupted_training_with_the_same_recorder(tmp_path):
    make_trainer(tmp_path / "whole" / "run", **CHECKPOINTS).train()
    interrupt = Interrupt()
    trainer = make_trainer(tmp_path / "run", interrupt, **CHECKPOINTS)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(interrupt)
    trainer.train(resume_from_checkpoint=True)
    assert_same_record(tmp_path / "run", tmp_path / "whole" / "run")


def test_a_checkpoint_without_the_record_before_it_is_refused_in_words_of_the_script(tmp_path):
    make_trainer(tmp_path / "run", StopAfter(2), **CHECKPOINTS).train()
    trainer = make_trainer(tmp_path / "other", **CHECKPOINTS)
    with pytest.raises(UserError, match=r"after step 2, but .*other holds no record") as refused:
        trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    occupied = make_trainer(tmp_path / "run", **CHECKPOINTS)
    with pytest.raises(UserError, match="or resume that run") as also_refused:
        occupied.train()
    for error in (refused, also_refused):
        assert "--" not in str(error.value) and "`" not in str(error.value)
    assert not (tmp_path / "other").exists() and Run(tmp_path / "run").steps == [0, 1, 2]
