"""Bad input gets one clear sentence, exit code 2, no traceback, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from subspace_lab import files
from subspace_lab.recording.lock import run_lock


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2, result.stderr
    assert last.startswith("error: ") and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in last, (word, last)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps, without step masks."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    small = ["--steps", 3, "--train_size", 16, "--eval_size", 8, "--snapshots", "never"]
    result = command("subspace_lab.train", "--config", "pocket", *small, "--out", out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rankk", "4"], ["--rankk"]),
        (["--keep_prob", "0"], ["keep_prob", "(0, 1]"]),
        (["--keep_prob", "1.5"], ["keep_prob", "(0, 1]"]),
        (["--rank", "0"], ["rank", "at least 1"]),
        (["--rank", "four"], ["rank", "four"]),
        (["--seed", "-1"], ["seed", "at least 0"]),
        (["--learning_rate", "0"], ["learning_rate", "above 0"]),
        (["--learning_rate", "nan"], ["learning_rate", "nan"]),
        (["--train_size", "0"], ["train_size", "at least 1"]),
        (["--eval_every", "-1"], ["eval_every", "at least 0"]),
        (["--cores", "every:²"], ["every:²", "every:K"]),
        (["--snapshots", "1,-2"], ["1,-2", "every:K"]),
        (["--granularity", "batch"], ["granularity", "batch"]),
        (["--method", "lorra"], ["method", "lorra"]),
        (["--task", "cooking"], ["cooking"]),
        (["--targets", "[attention]"], ["attention", "q_proj"]),
        (["--cores", "sometimes"], ["sometimes"]),
        (["--base", "./nowhere"], ["./nowhere"]),
        (["--config", "nothing"], ["nothing", "pocket"]),
        (["--data_dir", "./nowhere", "--task", "boolq"], ["nowhere"]),
    ],
)
def test_train_refuses(arguments, words, tmp_path):
    out = tmp_path / "run"
    result = command("subspace_lab.train", "--config", "pocket", *arguments, "--out", out)
    assert_refused(result, *words)
    assert not list(out.rglob("*.json"))


def test_an_unknown_key_names_file_key_and_nearest(tmp_path):
    (tmp_path / "mine.yaml").write_text("rankk: 4\n")
    result = command("subspace_lab.train", "--config", tmp_path / "mine.yaml", "--out", tmp_path)
    assert_refused(result, "mine.yaml", "'rankk'", "'rank'")


def test_a_malformed_data_file_is_named_with_its_line(tmp_path):
    folder = tmp_path / "math"
    folder.mkdir()
    good = json.dumps({"question": "1 + 1?", "answer": "2 #### 2"})
    (folder / "gsm8k_train.jsonl").write_text(f"{good}\n{good}\n{{broken\n")
    (folder / "gsm8k_test.jsonl").write_text(f"{good}\n")
    arguments = ["--config", "pocket", "--task", "gsm8k", "--data_dir", tmp_path]
    result = command("subspace_lab.train", *arguments, "--out", tmp_path / "run")
    assert_refused(result, "gsm8k_train.jsonl", "line 3")


def test_an_occupied_out_is_left_as_it_is(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = command("subspace_lab.train", "--config", "pocket", "--out", run)
    assert_refused(result, "already holds a run", "--out")
    other = ["--config", "pocket", "--rank", 2, "--resume", "true"]
    refused = command("subspace_lab.train", *other, "--out", run)
    assert_refused(refused, "another configuration", "--rank is 8 there and 2 here")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_has_one_writer_at_a_time(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(tmp_path / "run")
    with run_lock(tmp_path / "run"):
        result = command("subspace_lab.train", "--config", "pocket", "--out", link)
        assert run_lock(tmp_path / "elsewhere" / "run").acquire(timeout=0)
    assert_refused(result, "another process is training", "choose another --out")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        ("subspace_lab.train", ["--config", "pocket"], "cannot be written"),
        ("subspace_lab.sweep", ["--config", "methods"], "is not a folder"),
        ("analyses.report", ["--run", "RUN"], "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(module, arguments, reason, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    result = command(module, *arguments, "--out", tmp_path / "file" / "inside")
    assert_refused(result, "file", reason)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_analysis_refuses_what_is_no_run_and_says_what_to_record(run, tmp_path):
    assert_refused(command("analyses.effective_rank", "--run", tmp_path), str(tmp_path))
    assert_refused(command("analyses.subspace_angles", "--run", run), "step masks", "granularity")
    unknown = command("analyses.effective_rank", "--run", run, "--modules", "nothing")
    assert_refused(unknown, "'nothing'", "q_proj")


def test_a_truncated_chunk_is_named(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    chunk = next((copy / "cores").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:-100])
    assert_refused(command("analyses.effective_rank", "--run", copy), chunk.name, "truncated")


def test_resuming_a_finished_run_leaves_it_and_an_unfinished_one_without_checkpoint_restarts(run):
    arguments = ["--config", "pocket", "--steps", 3, "--train_size", 16, "--eval_size", 8]
    arguments += ["--snapshots", "never", "--out", run, "--resume", "true"]
    result = command("subspace_lab.train", *arguments)
    assert result.returncode == 0 and "nothing to do" in result.stdout
    description = files.read_json(run / "run.json")
    files.write_json(run / "run.json", description | {"status": "running"})
    again = command("subspace_lab.train", *arguments)
    assert again.returncode == 0, again.stderr
    assert files.read_json(run / "run.json")["status"] == "finished"
