"""Ctrl-C, SIGTERM and a full disk: a complete record, one line, and a run that continues."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from subspace_lab import files
from subspace_lab import train as command_module
from subspace_lab.errors import exit_code_2_on_user_error
from subspace_lab.interruption import Interrupted, interruptible
from subspace_lab.runs.run import Run
from subspace_lab.sweeping.running import run_command
from subspace_lab.training import trainer as training
from tests.training.conftest import TINY, environment


def run_train(monkeypatch, *arguments: object) -> int:
    """Run the training command in this process; give its exit code."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    try:
        command_module.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_an_interrupted_run_is_recorded_and_continues(base, tmp_path, monkeypatch, capsys):
    def interrupt(callback, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = [*TINY, "--steps=4", "--checkpoint_every=2", f"--base={base}"]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training.EvaluateTheEnd, "on_step_end", interrupt)
        assert run_train(monkeypatch, *arguments, f"--out={out}") == 143
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"interrupted after step 2, which is recorded in {out}: the same command with --resume "
        "true continues from the checkpoint of step 2"
    )
    run = Run(out)
    assert run.description["status"] == "interrupted"
    assert run.steps == [0, 1, 2]  # the recorder comes after the callback that was interrupted
    assert run_train(monkeypatch, *arguments, f"--out={out}", "--resume=true") == 0
    assert run_train(monkeypatch, *arguments, f"--out={tmp_path / 'whole'}") == 0
    whole, continued = Run(tmp_path / "whole"), Run(out)
    assert continued.finished and continued.steps == whole.steps
    np.testing.assert_allclose(continued.metrics["loss"], whole.metrics["loss"], rtol=1e-6)


def test_an_interruption_before_the_first_checkpoint_and_before_the_first_step(
    base, tmp_path, monkeypatch, capsys
):
    def interrupt(callback, args, state, control, **kwargs):
        raise Interrupted(signal.SIGTERM)

    for event, words in (
        ("on_step_end", "starts again from step 0, since there is no checkpoint"),
        ("on_init_end", "interrupted"),
    ):
        out = tmp_path / event
        with monkeypatch.context() as patch:
            patch.setattr(training.EvaluateTheEnd, event, interrupt)
            assert run_train(monkeypatch, *TINY, f"--base={base}", f"--out={out}") == 143
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "on_init_end" / "run.json").exists()


def test_a_half_written_checkpoint_is_passed_over(base, tmp_path, monkeypatch, capsys):
    def interrupt(trainer, *args, **kwargs):
        if trainer.state.global_step == 2:
            raise Interrupted(signal.SIGTERM)

    arguments = [*TINY, "--checkpoint_every=1", f"--base={base}", f"--out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_save_rng_state", interrupt)
        assert run_train(monkeypatch, *arguments) == 143
    assert (tmp_path / "run/checkpoints/checkpoint-2").is_dir()
    assert "continues from the checkpoint of step 1" in capsys.readouterr().err
    assert run_train(monkeypatch, *arguments, "--resume=true") == 0
    assert Run(tmp_path / "run").steps == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_interrupt_with_a_shells_exit_code(name, code):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore SIGINT
    try:
        with pytest.raises(KeyboardInterrupt) as interrupted, interruptible():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)
    assert interrupted.value.exit_code == code


def test_only_the_first_signal_counts_and_others_keep_their_handlers(monkeypatch):
    before, written = signal.getsignal(signal.SIGTERM), False
    monkeypatch.setattr(signal, "SIGHUP", signal.SIGUSR1)  # whose own handler stays, as nohup's
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with pytest.raises(Interrupted) as interrupted, interruptible():
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # would break off what is written here
                os.kill(os.getpid(), signal.SIGINT)
                written = True
        assert written
        assert interrupted.value.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_any_command_ends_without_a_traceback(capsys):
    @exit_code_2_on_user_error
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 130 and capsys.readouterr().err == "interrupted\n"


CHILD = """
import signal, sys, time
from pathlib import Path
def save(*_): Path("saved").touch(); sys.exit(1)
signal.signal(signal.SIGTERM, save)
Path("ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("launcher", [[], ["sh", "-c", '"$0" "$@"; true']])
def test_an_interrupted_sweep_lets_its_run_write(tmp_path, monkeypatch, launcher):
    monkeypatch.chdir(tmp_path)

    def when_ready() -> None:
        while not Path("ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=when_ready)
    thread.start()
    with pytest.raises(Interrupted), interruptible():
        run_command([*launcher, sys.executable, "-c", CHILD], str(tmp_path / "run"))
    thread.join()
    for _ in range(500):  # a launcher may end before what it launched
        if Path("saved").exists():
            break
        time.sleep(0.01)
    assert Path("saved").exists()


def test_a_limit_on_file_sizes_is_one_sentence(base, tmp_path):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "subspace_lab.train", *TINY, "--rank=16", "--checkpoint_every=1",
         f"--base={base}", f"--out={out}"],
        capture_output=True, text=True, env=environment(), preexec_fn=limited,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert last.startswith(f"error: {out}") and "cannot be written" in last
    assert files.read_json(out / "run.json")["status"] == "interrupted"


@pytest.mark.filterwarnings("ignore:the run .* has diverged")
def test_a_diverged_run_has_exit_code_1(base, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = [*TINY, f"--base={base}", f"--out={out}", "--optimizer=sgd", "--max_grad_norm=0"]
    assert run_train(monkeypatch, *arguments, "--learning_rate=1e30") == 1
    assert f"{out} has diverged" in capsys.readouterr().err.strip().splitlines()[-1]
    run = Run(out)
    assert run.finished and run.diverged_at is not None
    assert np.isnan(run.metrics["loss"].iloc[-1]) and np.isnan(
        run.evaluations["eval_response_loss"].iloc[-1]
    )
    again = [*arguments, "--learning_rate=1e30", "--resume=true"]
    assert run_train(monkeypatch, *again) == 1 and "nothing to do" in capsys.readouterr().out
