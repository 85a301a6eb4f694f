"""The report's numbers, and those of the learning curves, are those of the runs' files."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import statistics

import pandas as pd
import pyarrow.parquet as pq
import pytest

from analyses import learning_curves
from analyses.kit.tables import concatenate
from analyses.registry import all_analyses
from analyses.report import compute
from analyses.report.overview import overview
from analyses.report.page import render
from analyses.report.parts import tables_of
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.analyses.test_command import assert_one_sentence


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Short runs that evaluate test rows, validation rows and none."""
    folder = tmp_path_factory.mktemp("report")
    for split in ("test", "validation", "none"):
        config = TrainConfig(
            method="droplora", steps=6, train_size=48, eval_size=12, eval_split=split, cores="light"
        )  # fmt: skip
        train(config, folder / split)
    return {split: Run(folder / split) for split in ("test", "validation", "none")}


def cells(page: str) -> dict[str, dict[str, str]]:
    """Read the overview, by run and by column."""
    table = page.partition("<h2 id='runs'>")[2].partition("</table>")[0]
    heads = [re.sub("<br>.*", "", head) for head in re.findall("<th>(.*?)</th>", table)]
    rows = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    return {row[0]: dict(zip(heads, map(html.unescape, row), strict=True)) for row in rows}


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / n / 2) ** 2)
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_the_overview_is_what_the_files_say(runs):
    shown = cells(render(compute(list(runs.values()))))
    for split in ("test", "validation"):
        found, folder = shown[split], runs[split].path
        records = pq.read_table(folder / "metrics.parquet").to_pylist()
        evaluated = [row for row in records if row["eval_examples"] is not None]
        evaluated = [row for row in evaluated if not math.isnan(row["eval_examples"])]
        first, last = evaluated[0], evaluated[-1]
        assert (first["step"], last["step"]) == (0, 6)
        losses = f"{first['eval_response_loss']:.2f} → {last['eval_response_loss']:.2f}"
        assert found["loss when evaluated"] == losses
        low, high = wilson(last["eval_exact_match"], 12)
        matches = f"{first['eval_exact_match']:.2f} → {last['eval_exact_match']:.2f}"
        assert found["exact match"] == f"{matches} [{abs(low):.2f}, {high:.2f}]"
        assert found["evaluated on"] == f"12 {split} examples"
        times = [row["seconds"] for row in records if row["step"] > 0]
        assert found["step time"] == f"{statistics.median(times):.2f} s"
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert found["size"] == f"{size / 2**20:.0f} MiB"
        assert (found["method"], found["steps"]) == ("droplora", "6")
        assert found["mask"] == "per step, keep_prob 0.5, × 1/keep_prob"
    assert shown["none"]["evaluated on"] == "nothing" and shown["none"]["exact match"] == ""


def test_a_seed_that_was_not_evaluated_leaves_the_mean_of_the_others(runs):
    table = compute([runs["test"]])
    table = pd.concat([table] * 3, ignore_index=True)
    table["last_exact_match"] = [0.5, 0.6, math.nan]
    assert re.search(r" → 0.55 \[0.00, 1.00\]", overview(table))


def test_a_run_without_a_mask_says_so_beside_one_with_a_mask(runs, tmp_path):
    shutil.copytree(runs["none"].path, tmp_path / "plain")
    plain = Run(tmp_path / "plain")
    plain.description["mask"] = None
    shown = cells(render(compute([plain, runs["none"]])))
    assert shown["plain"]["mask"] == "none" and shown["none"]["mask"].startswith("per step")


def test_a_run_of_another_script_gets_a_page(run, command, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(run.path, folder)
    description = (folder / "run.json").read_text()
    (folder / "run.json").write_text(description.replace('"config"', '"other"'))
    out = tmp_path / "report.html"
    assert command("report", "--run", folder, "--out", out).code == 0
    assert cells(out.read_text())["own"]["method"] == "?"
    refused = command("report", "--run", folder, "--out", out / "below")
    assert_one_sentence(refused, "cannot be written", "choose another location")


def test_curves_name_the_examples_and_stack_in_any_order(runs):
    tables = {split: learning_curves.compute(run) for split, run in runs.items()}
    for order in (["none", "validation"], ["validation", "none"]):
        table = concatenate(tables[split] for split in order)
        figure = learning_curves.plot(table)
        titles = [axis.get_title(loc="left") + axis.get_title() for axis in figure.axes]
        assert titles == ["training loss", "validation loss", "validation exact match"]
        assert figure.get_suptitle().splitlines()[0] == "Learning curves, 12 validation examples"
        assert len(learning_curves.summarize(table)) == 4
    both = concatenate([tables["test"], tables["validation"]])
    note, _ = learning_curves.plot(both).get_suptitle().splitlines()
    assert note == "Learning curves, 12 test examples, 12 validation examples"
    assert any("test exact match" in name for name in learning_curves.summarize(both))


def test_a_diverged_run_is_flagged_wherever_it_is_named(runs, command, tmp_path):
    folder = tmp_path / "wild"
    shutil.copytree(runs["validation"].path, folder)
    description = json.loads((folder / "run.json").read_text()) | {"diverged_at": 4}
    (folder / "run.json").write_text(json.dumps(description))
    metrics = Run(folder).metrics
    metrics.loc[metrics["step"] >= 4, ["loss", "eval_response_loss"]] = float("nan")
    metrics.to_parquet(folder / "metrics.parquet")
    name = "wild (diverged at step 4)"
    curves = command("learning_curves", "--run", folder, "--out", tmp_path).out.splitlines()
    for what in ("training loss", "validation loss"):
        (line,) = (line for line in curves if f"{name}, {what}" in line)
        assert line.endswith("→ nan")
    command("effective_rank", "--run", folder, "--out", tmp_path)
    assert set(pd.read_parquet(tmp_path / "effective_rank.parquet")["run"]) == {name}
    command("report", "--run", folder, "--out", tmp_path / "page.html")
    assert cells((tmp_path / "page.html").read_text())[name]["loss when evaluated"].endswith("nan")


def test_curves_choose_among_the_steps_of_the_metrics(runs, command, tmp_path):
    run = runs["test"].path
    found = command("learning_curves", "--run", run, "--steps", "3", "--out", tmp_path)
    assert found.code == 0 and "(1 rows)" in found.out  # cores are of every tenth step


def test_a_run_without_losses_is_one_sentence(runs, tmp_path):
    shutil.copytree(runs["test"].path, tmp_path / "silent")
    silent = Run(tmp_path / "silent")
    silent.metrics[["step", "seconds"]].to_parquet(silent.path / "metrics.parquet")
    with pytest.raises(UserError, match="silent has no losses"):
        learning_curves.compute(silent)


def test_everything_that_a_run_says_is_escaped(runs, tmp_path):
    copy = tmp_path / "<b>run</b>"
    shutil.copytree(runs["test"].path, copy)
    table = learning_curves.compute(Run(copy))
    table.attrs["notes"] = {"run": ["not analyzed: <i>reason</i>"]}
    (copy / "analyses").mkdir(exist_ok=True)
    table.to_parquet(copy / "analyses" / "learning_curves.parquet")
    run = Run(copy)
    evil = "<script>alert(1)</script>&"
    run.description["config"] |= dict.fromkeys(("method", "eval_split", "task", "base"), evil)
    run.description["provenance"] |= {"base": evil, "base_remark": evil}
    page = render(compute([run]))
    assert not re.search("<script|<b>|<i>reason", page)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 4
    assert "not analyzed: &lt;i&gt;reason&lt;/i&gt;." in page


def test_a_comparison_of_all_runs_is_read_from_its_folder(runs, run, command, tmp_path):
    pair = ["--run", runs["test"].path, "--run", run.path]
    made = command("mask_theory", *pair, "--out", tmp_path, "--format", "none")
    assert made.code == 0, made.err
    tables = tables_of(all_analyses()["mask_theory"], list(runs.values()), [tmp_path])
    assert [one.name for one in tables] == ["test"]  # neither those of others nor of other runs
    whole = pd.read_parquet(tmp_path / "mask_theory.parquet")
    assert len(tables[runs["test"]]) == (whole["run"] == "test").sum() > 20
    page = render(compute(list(runs.values()), comparisons=[tmp_path]))
    assert "Without validation, none: it was not computed." in page
    missing = command("report", *pair, "--comparisons", tmp_path / "no", "--out", tmp_path / "page")
    assert_one_sentence(missing, tmp_path / "no", "mask_theory")
