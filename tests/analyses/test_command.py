"""Bad input ends every command with one sentence and exit code 2; runs get distinct names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from analyses.kit.command import parser_of
from analyses.kit.selection import open_named_runs
from analyses.registry import all_analyses

SLOW = {"transformers", "peft", "datasets", "lm_eval", "evalplus", "scipy.stats"}
RECORDED = ["effective_rank", "subspace_angles", "frame_drift"]


def assert_one_sentence(outcome, *words: object) -> None:
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    for word in words:
        assert str(word) in outcome.err


@pytest.mark.parametrize("name", all_analyses())
def test_every_analysis_is_a_command(command, name):
    outcome = command(name, "--help")
    assert outcome.code == 0 and outcome.out.startswith(f"usage: python -m analyses.{name} ")


@pytest.mark.parametrize("name", RECORDED)
def test_no_run(command, name, tmp_path):
    assert_one_sentence(command(name, "--run", tmp_path / "nothing"), tmp_path / "nothing")
    assert_one_sentence(command(name, "--run", f"{tmp_path}/no*"), "no run matches")


@pytest.mark.parametrize("name", RECORDED)
def test_unknown_module_or_step(command, name, run):
    outcome = command(name, "--run", run.path, "--modules", "k_proj")
    assert_one_sentence(outcome, "'k_proj'", "q_proj, v_proj, down_proj")
    assert_one_sentence(command(name, "--run", run.path, "--steps", "2,17"), "step 17", "0 to 6")
    assert_one_sentence(command(name, "--run", run.path, "--steps", "often"), "'often'")


@pytest.mark.parametrize("name", RECORDED)
def test_damaged_chunk(command, name, run, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(run.path, damaged)
    chunk = sorted((damaged / "cores").iterdir())[-1]
    chunk.write_bytes(chunk.read_bytes()[:-1000])
    assert_one_sentence(command(name, "--run", damaged), chunk, "truncated")


def test_what_an_analysis_needs_is_said(command, adapter):
    outcome = command("subspace_angles", "--run", adapter)
    assert_one_sentence(outcome, "has no step masks", "--granularity step")
    assert_one_sentence(command("frame_drift", "--run", adapter), "--cores")
    outcome = command("effective_rank", "--run", adapter, "--measures", "magic")
    assert_one_sentence(outcome, "magic", "entropy")


@pytest.mark.parametrize("name", ["subspace_angles", "merged_spectra", "gate_expansion"])
def test_an_adapter_of_another_kind(command, name, run, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(run.path, folder)
    description = json.loads((folder / "run.json").read_text()) | {"modules": []}
    (folder / "run.json").write_text(json.dumps(description))
    assert_one_sentence(command(name, "--run", folder), folder, "factors B and A")
    curves = command("learning_curves", "--run", folder, "--out", tmp_path)
    assert curves.code == 0, curves.err  # which need none


def test_output_that_cannot_be_written(command, run, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = command("effective_rank", "--run", run.path, "--out", tmp_path / "file" / "inside")
    assert_one_sentence(outcome, "cannot be written", "choose another location")


def test_results_go_beside_one_run_and_into_comparisons_for_several(
    command, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for seed, folder in ((0, "a/run"), (1, "b/run")):
        shutil.copytree(run.path, tmp_path / folder)
        description = json.loads((tmp_path / folder / "run.json").read_text())
        description["config"]["seed"] = seed
        (tmp_path / folder / "run.json").write_text(json.dumps(description))
    found = command("effective_rank", "--run", "a/run", "b/run", "--steps", "1,2")
    assert "wrote comparisons/a-run+b-run/effective_rank.parquet" in found.out
    table = pd.read_parquet("comparisons/a-run+b-run/effective_rank.parquet")
    assert set(table["run"]) == {"a/run", "b/run"}
    assert table["configuration"].nunique() == 1
    found = command("effective_rank", "--run", "a/run", "--steps", "last")
    assert "wrote a/run/analyses/effective_rank.parquet" in found.out


def test_without_a_figure_and_with_csv(command, run, tmp_path):
    options = ["--steps", "4,6", "--format", "none", "--csv"]
    for spelling in ("--top_k", "--top-k"):
        out = tmp_path / spelling
        found = command("merged_spectra", "--run", run.path, *options, spelling, "2", "--out", out)
        assert found.code == 0, found.err
        files = {path.name for path in out.iterdir()}
        assert files == {f"merged_spectra.{form}" for form in ("parquet", "csv", "json")}
        described = json.loads((out / "merged_spectra.json").read_text())
        assert described["arguments"]["top_k"] == 2 and described["question"]
    whole = pd.read_parquet(out / "merged_spectra.parquet")
    text = pd.read_csv(out / "merged_spectra.csv")
    assert list(text.columns) == list(whole.columns) and len(text) == len(whole)


def test_runs_named_twice_are_opened_once_and_names_stay_short(run):
    assert [r.name for r in open_named_runs([[str(run.path)], [str(run.path)]])] == [run.name]


def test_starting_an_analysis_imports_nothing_that_takes_long():
    program = (
        "import sys; from analyses.registry import all_analyses\n"
        f"print(len(all_analyses()), {SLOW} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout == f"{len(all_analyses())} set()\n", found.stderr


@pytest.mark.parametrize("name", all_analyses())
def test_help_explains_the_number(name):
    analysis = all_analyses()[name]
    text = parser_of(analysis).format_help()
    assert f"python -m analyses.{name}" in text and analysis.description in text
    assert ("--modules" in text) == analysis.selects


def test_a_process_of_its_own_prints_one_line_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "analyses.effective_rank", "--run", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
