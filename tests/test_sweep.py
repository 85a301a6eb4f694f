"""Sweeps: the grid, skipping and resuming, the status, and selection on validation rows."""

from __future__ import annotations

import importlib.util
import itertools
import json
import multiprocessing
import sys
import time

import pandas as pd
import pytest
import yaml

from subspace_lab import sweep
from subspace_lab.errors import UserError
from subspace_lab.recording.lock import run_lock
from subspace_lab.sweeping import running
from subspace_lab.sweeping.grid import Sweep, only, read_sweep
from subspace_lab.sweeping.running import command_of, run_here, submit
from subspace_lab.sweeping.selection import select
from subspace_lab.sweeping.state import state_of, status_table
from subspace_lab.training.presets import CONFIGS
from subspace_lab.training.trainer import train
from tests.training.conftest import command, make_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tiny(base, tmp_path):
    """Write a sweep file of tiny runs with the given grid and keys."""

    def write(grid, **keys):
        fields = {
            "base": str(base),
            "base_dtype": "fp32",
            "rank": 4,
            "train_size": 16,
            "eval_size": 8,
            "steps": 2,
            "batch_size": 4,
        }
        content = {"fields": fields | keys.pop("fields", {}), "grid": grid} | keys
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def ended():
    """Start a process that does nothing."""
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    return process


def train_all(sweep: Sweep, out, *, but=()):
    for job in sweep.jobs:
        if job.name not in but:
            train(job.config, out / job.name)


def test_grid_is_a_union_of_products_without_repetitions(tiny):
    sweep = read_sweep(
        tiny(
            [
                {"method": ["lora", "droplora"], "keep_prob": [0.5, 0.7], "seed": [0, 1]},
                {"preset": [["paper-code"]], "seed": [0]},
            ]
        )
    )
    # keep_prob means nothing to a LoRA, so its four runs are two.
    assert [job.name for job in sweep.jobs] == [
        "method=lora,seed=0",
        "method=lora,seed=1",
        "method=droplora,keep_prob=0.5,seed=0",
        "method=droplora,keep_prob=0.5,seed=1",
        "method=droplora,keep_prob=0.7,seed=0",
        "method=droplora,keep_prob=0.7,seed=1",
        "preset=paper-code,seed=0",
    ]
    assert sweep.jobs[-1].config.granularity == "token"


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_sweeps_are_valid(path):
    assert read_sweep(path.stem).jobs


def test_papers_tables_cross_models_tasks_and_methods():
    configs = [job.config for job in read_sweep("paper-tables").jobs]
    llama2, llama3 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"
    recipes = {"commonsense_170k": 32, "metamathqa": 64, "codefeedback": 32, "wizardlm": 32}
    methods = ("lora", "dora", "pissa", "milora", "droplora")
    crossed = itertools.product((llama2, llama3), recipes.items(), methods, (42, 43, 44))
    expected = [(base, task, rank, method, seed) for base, (task, rank), method, seed in crossed]
    expected += [(llama2, "commonsense_170k", 16, "lora", seed) for seed in (42, 43, 44)]  # Table 5
    trained = [(one.base, one.task, one.rank, one.method, one.seed) for one in configs]
    assert sorted(trained) == sorted(expected)
    assert {one.granularity for one in configs if one.masked} == {"token"}


@pytest.mark.parametrize(
    ("grid", "keys", "message"),
    [
        ({"methd": ["lora"]}, {}, "'methd', which is not a field"),
        ({"method": ["loraa"]}, {}, "method"),
        ({"task": ["a"]}, {"select": "keep_prop"}, "'keep_prop', which is not a field"),
        ({"keep_prob": [0.5]}, {"select": {"field": "rank", "score": "loss"}}, "score must be"),
        ({"eval_split": ["test"]}, {"select": "keep_prob"}, "evaluates on test"),
        ([], {}, "has no grid"),
        ({"seed": [0]}, {"grids": []}, "unknown key 'grids'"),
        ({"seed": []}, {}, "no value of seed"),
        ({"base": ["a/b", "a-b"]}, {}, "2 different runs of the grid would be named base=a-b"),
        ({"keep_prob": [0.5], "method": ["droplora"]}, {"select": "keep_prob"}, "at least 2"),
        ({"seed": [0, 1]}, {"select": "seed"}, "selects the seed"),
        ({"seed": [0, 1]}, {"select": {"field": ["keep_prob"]}}, "is not a field"),
    ],
)
def test_bad_sweep_files_are_refused(tiny, grid, keys, message):
    with pytest.raises(UserError, match=message):
        read_sweep(tiny(grid, **keys))


def test_selection_takes_the_best_validation_score(tiny, tmp_path):
    sweep = read_sweep(
        tiny(
            {"method": ["droplora"], "rank": [2, 4], "keep_prob": [0.5, 1.0], "seed": [0, 1]},
            select="keep_prob",
        )
    )
    assert {job.config.eval_split for job in sweep.jobs} == {"validation"}
    out = tmp_path / "runs"
    train_all(sweep, out, but=[sweep.jobs[-1].name])
    with pytest.raises(UserError, match="is not finished"):
        select(sweep, out)
    train(sweep.jobs[-1].config, out / sweep.jobs[-1].name)
    table = select(sweep, out)
    status = status_table(sweep, out).set_index("run")["eval_response_loss"]
    for group, rows in table.groupby("group"):
        rank = group.removeprefix("method droplora, rank ")
        for row in rows.itertuples():
            runs = [
                f"method=droplora,rank={rank},keep_prob={row.keep_prob},seed={s}" for s in (0, 1)
            ]
            assert row.mean == pytest.approx(status[runs].mean())
            assert row.low < row.mean < row.high
            assert row.seeds == 2
        assert rows.loc[rows["chosen"], "mean"].tolist() == [rows["mean"].min()]


def test_a_diverged_run_is_the_worst_and_an_old_evaluation_no_score(tiny, tmp_path):
    grid = {"method": ["droplora"], "keep_prob": [0.5, 0.7]}
    sweep = read_sweep(tiny(grid, select="keep_prob"))
    out = tmp_path / "runs"
    train_all(sweep, out)
    chosen = select(sweep, out).set_index("keep_prob")["chosen"]
    best = next(job for job in sweep.jobs if chosen[job.values["keep_prob"]])
    path = out / best.name / "metrics.parquet"
    metrics = pd.read_parquet(path)
    metrics.loc[metrics.index[-1], "eval_response_loss"] = float("nan")
    metrics.to_parquet(path)
    found = select(sweep, out).set_index("keep_prob")
    assert not found.loc[best.values["keep_prob"], "chosen"] and found["chosen"].sum() == 1
    metrics.loc[metrics.index[-1], "eval_examples"] = float("nan")
    metrics.to_parquet(path)
    with pytest.raises(UserError, match="not evaluated at its end"):
        select(sweep, out)


@pytest.mark.filterwarnings("ignore:the run .* has diverged")
def test_a_diverged_run_is_finished_and_named(tiny, tmp_path, monkeypatch, capsys):
    fields = {"optimizer": "sgd", "max_grad_norm": 0}
    path, out = tiny({"learning_rate": [1e-3, 1e30]}, fields=fields), tmp_path / "runs"
    configs = {job.name: job.config for job in read_sweep(path).jobs}

    def start(command, log):
        train(configs[log.stem], out / log.stem)
        return ended()

    monkeypatch.setattr(running, "start", start)
    monkeypatch.setattr(sys, "argv", ["sweep", f"--config={path}", f"--out={out}"])
    with pytest.raises(SystemExit) as exit_:
        sweep.main()
    assert exit_.value.code == 0
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning == "warning: these runs have diverged: learning_rate=1e+30"
    table = status_table(read_sweep(path), out)
    assert table["state"].tolist() == ["finished", "finished"]
    assert table["diverged_at"].notna().tolist() == [False, True]
    assert table["eval_response_loss"].notna().tolist() == [True, False]


def test_a_folder_of_another_sweep_is_refused(tiny, tmp_path):
    out = tmp_path / "runs"
    train_all(read_sweep(tiny({"seed": [0]})), out)
    (tmp_path / "file").write_text("")
    path = tiny({"seed": [0]}, fields={"steps": 3})
    for folder, message in (
        (out, "seed=0 differs from the sweep file in steps: choose another --out"),
        (tmp_path / "file" / "runs", "file is not a folder"),
    ):
        done = command("subspace_lab.sweep", f"--config={path}", f"--out={folder}", "--status")
        assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize("others", [["--select"], ["--executor", "slurm"]])
def test_status_goes_alone(tiny, tmp_path, others):
    path = tiny({"seed": [0]})
    arguments = [f"--config={path}", f"--out={tmp_path}", "--status", *others]
    done = command("subspace_lab.sweep", *arguments)
    assert done.returncode == 2 and "not allowed with" in done.stderr


def test_a_missing_launcher_is_told(tiny, tmp_path):
    with pytest.raises(UserError, match="no command 'acelerate'"):
        run_here(read_sweep(tiny({"seed": [0]}, launch=["acelerate", "launch"])), tmp_path)


def test_finished_runs_are_skipped_and_others_taken_up(tiny, tmp_path, monkeypatch):
    sweep = read_sweep(tiny({"seed": [0, 1, 2, 3]}))
    out = tmp_path / "runs"
    finished, interrupted, busy, waiting = (out / job.name for job in sweep.jobs)
    for run, status in ((finished, "finished"), (interrupted, "running"), (busy, "running")):
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"status": status}))
    started = []
    monkeypatch.setattr(running, "start", lambda command, log: started.append(log.stem) or ended())
    with run_lock(busy):
        states = status_table(sweep, out)["state"].tolist()
        assert states == ["finished", "interrupted", "running", "waiting"]
        assert run_here(sweep, out) == []
    assert started == [interrupted.name, waiting.name]


def test_launch_prefixes_the_command(tiny, tmp_path):
    sweep = read_sweep(tiny({"seed": [3]}, launch=["accelerate", "launch"]))
    found = command_of(sweep.jobs[0], tmp_path / "x", sweep.launch)
    assert found[:4] == ["accelerate", "launch", "-m", "subspace_lab.train"]
    assert "--seed=3" in found
    assert found[-1] == "--resume=true"


def test_command_runs_and_reports_a_failure(tiny, tmp_path):
    path = tiny([{"method": ["lora"]}, {"base": ["./nowhere"]}])
    out = tmp_path / "runs"
    done = command("subspace_lab.sweep", f"--config={path}", f"--out={out}")
    assert done.returncode == 1
    assert "failed: base=.-nowhere" in done.stderr
    assert "./nowhere does not exist" in (out / "logs/base=.-nowhere.log").read_text()
    assert state_of(out / "method=lora") == "finished"
    shown = command("subspace_lab.sweep", f"--config={path}", f"--out={out}", "--status")
    assert [line.split()[1] for line in shown.stdout.splitlines()[1:]] == ["finished", "waiting"]


def test_runs_side_by_side_are_those_of_one_after_another(tiny, tmp_path):
    path = tiny({"method": ["lora", "droplora"], "seed": [0, 1]})
    for jobs, out in ((1, tmp_path / "single"), (2, tmp_path / "pairs")):
        done = command("subspace_lab.sweep", f"--config={path}", f"--out={out}", "--jobs", jobs)
        assert done.returncode == 0, done.stderr
        assert "4/4" in done.stderr and f"wrote {out / 'results.parquet'}" in done.stdout
    tables = [pd.read_parquet(tmp_path / name / "results.parquet") for name in ("single", "pairs")]
    assert tables[0].columns[:4].tolist() == ["run", "method", "seed", "state"]
    assert tables[0]["state"].tolist() == ["finished"] * 4
    pd.testing.assert_frame_equal(*tables)


def test_a_filter_takes_some_runs_and_refuses_what_matches_none(tiny, tmp_path):
    sweep = read_sweep(tiny({"method": ["lora", "dora"], "seed": [0, 1]}))
    assert [job.name for job in only(sweep, ["*seed=1", "*dora*"]).jobs] == [
        "method=lora,seed=1",
        "method=dora,seed=0",
        "method=dora,seed=1",
    ]
    with pytest.raises(UserError, match=r"no run matches 'seed=\*': the runs are named like"):
        only(sweep, ["seed=*"])


def test_an_interrupt_reaches_all_runs(tiny, tmp_path, monkeypatch):
    sweep = read_sweep(tiny({"seed": [0, 1, 2]}, launch=["sleep", "60"]))
    started = []

    def wait(sentinels):
        started.extend(sentinels)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "command_of", lambda job, run, launch: ["sleep", "60"])
    monkeypatch.setattr(running, "wait", wait)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_here(sweep, tmp_path / "runs", jobs=2)
    assert len(started) == 2 and time.monotonic() - before < 50


def test_command_tells_an_unknown_sweep(tmp_path):
    done = command("subspace_lab.sweep", "--config=nothing", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "no sweep or file 'nothing'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed"
)
def test_submitit_runs_the_jobs(tiny, tmp_path):
    sweep = read_sweep(tiny({"method": ["lora"]}, slurm={"timeout_min": 5}))
    (job,) = submit(sweep, tmp_path / "runs", cluster="local")
    assert job.result() == 0
    assert status_table(sweep, tmp_path / "runs")["state"].tolist() == ["finished"]
    assert submit(sweep, tmp_path / "runs", cluster="local") == []


@pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed"
)
def test_without_slurm_there_is_one_sentence(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="cannot be submitted to slurm"):
        submit(read_sweep(tiny({"method": ["lora"]})), tmp_path / "runs")
