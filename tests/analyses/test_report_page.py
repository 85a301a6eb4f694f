"""What the report says of many seeds and several problems: the headline, links, verdicts."""

from __future__ import annotations

import base64
import html
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from analyses import kit, paired_differences
from analyses.claims.paper import CLAIMS
from analyses.comparisons.rates import EQUAL
from analyses.mask_theory.figure import THEOREMS as TESTED
from analyses.registry import all_analyses
from analyses.report import compute
from analyses.report.evaluations import BETTER, OPEN, WITHIN, WORSE, outcome
from analyses.report.headline import headline
from analyses.report.page import render
from analyses.report.parts import parts_of
from analyses.report.theorems import THEOREMS, linked
from subspace_lab.runs.run import Run
from tests.analyses.scored_runs import ROWS, write_run

RATES = (1e-3, 2e-3)
NOISE = {  # what the planted seeds add to the loss on test examples
    "apart": (0.0, 0.002, -0.002),
    "same": (0.3, -0.3, 0.1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two problems, each with LoRA and step masks at two rates and three seeds, compared.

    On the larger one masks have a loss lower by 0.2 at each rate, and LoRA's own rate is the lower
    one; on the smaller one nothing differs but by chance.
    """
    folder = tmp_path_factory.mktemp("seeds")
    for problem, size in (("apart", 128), ("same", 64)):
        runs = []
        for method in ("lora", "droplora"):
            for rate in RATES:
                for seed in range(3):
                    masked = method == "droplora"
                    loss = 0.8 - 0.2 * (masked and problem == "apart")
                    loss += NOISE[problem][seed] * masked + (0.1 if rate == RATES[1] else 0.0)
                    name = f"{problem}-{method}-{rate}-{seed}"
                    run = write_run(
                        folder / name, seed=seed, losses={"flip": np.full(ROWS, loss)},
                        method=method, learning_rate=rate, train_size=size, task="flip",
                        validation=(0.5, loss),
                    )  # fmt: skip
                    metrics = run.metrics.assign(seconds=0.03 if masked else 0.02)
                    metrics.to_parquet(folder / name / "metrics.parquet")
                    runs.append(Run(folder / name))
        named = ["--run", *(str(run.path) for run in runs)]
        out = ["--out", str(folder / "compared" / problem)]
        kit.run_analysis(paired_differences.ANALYSIS, named + out)
    return folder


@pytest.fixture(scope="module")
def overview(folder) -> pd.DataFrame:
    runs = [Run(path.parent) for path in sorted(folder.glob("*/run.json"))]
    table = compute(runs, comparisons=sorted((folder / "compared").iterdir()))
    table.attrs["folder"] = str(folder)
    return table


@pytest.fixture(scope="module")
def page(overview) -> str:
    return render(overview)


def sentences(page: str) -> list[str]:
    found = page.partition("<ul class='headline'>")[2].partition("</ul>")[0]
    lines = re.findall("<li>(.*?)</li>", found)
    return [html.unescape(re.sub(" ?<a.*?</a>", "", line)) for line in lines]


def test_the_headline_says_what_differs_and_what_does_not(page):
    own, within, equal, many, cost, theory = sentences(page)
    assert own == (
        "Each at its own learning rate, over 3 paired seeds, the difference to LoRA in the loss of "
        "the right response (nats/token) is beyond its 95 % interval for step masks on flip, 128 "
        "examples (better: -0.200 [-0.205, -0.195])."
    )
    assert within.startswith("It is not for step masks on flip, 64 examples (+0.033 [-0.726, ")
    assert equal.startswith("At equal learning rates, 2 of 4 differences are beyond")
    assert "at 0.001; step masks" in equal and "does not say which method is better" in equal
    assert many.startswith("None of these 6 intervals") and "0.3 of them" in many
    assert cost.endswith("1.50 under step masks.")
    assert theory.startswith("No prediction was tested")


def test_without_comparisons_the_headline_says_that_nothing_was_tested(overview, tmp_path):
    parts = parts_of([Run(path) for path in overview["path"]])
    differences, cost, theory = headline(overview, parts, [tmp_path])
    assert "was not tested" in differences and "1.50" in cost and "No prediction" in theory
    plain = overview[overview["method"] == "droplora"]
    _, cost, _ = headline(plain, parts, [tmp_path])
    assert "is not known" in cost


def test_a_headline_of_one_comparison_counts_nothing(overview, folder, tmp_path):
    parts = parts_of([Run(path) for path in overview["path"]])
    shutil.copytree(folder / "compared" / "apart", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "paired_differences.parquet"
    table = pd.read_parquet(path)
    table[(table["rates"] == EQUAL) & (table["learning_rate"] == RATES[0])].to_parquet(path)
    equal, _, _ = headline(overview, parts, [tmp_path])
    assert equal.startswith(
        "At equal learning rates, the difference to LoRA in the loss of the right response "
        "(nats/token) is beyond its 95 % interval: step masks on flip, 128 examples (better: -0.200"
    )


def test_the_command_of_a_missing_analysis_names_a_run_that_it_can_read(run, tmp_path):
    plain = write_run(tmp_path / "plain", seed=0, losses={}, method="lora", validation=(0.5, 1.0))
    sections = [
        render(compute(runs)).partition("<h2 id='subspace_angles'>")[2].partition("<h2")[0]
        for runs in ([plain, run], [plain])
    ]
    assert f"subspace_angles --run {run.path}</code>" in sections[0]
    assert f"Not available: {plain.path} has no" in sections[1]


def test_a_failed_prediction_is_in_the_headline_and_below(run, command, tmp_path):
    command("mask_theory", "--run", run.path, "--out", tmp_path, "--format", "none")
    path = tmp_path / "mask_theory.parquet"
    table = pd.read_parquet(path)
    place = table.index[table["agrees"].fillna(False).astype(bool)][0]
    name, theorem = table.loc[place, "prediction"], table.loc[place, "statement"]
    agree = int((table["agrees"].fillna(False) & ~table["repeats"]).sum())
    table.loc[place, "agrees"] = False
    table.to_parquet(path)
    page = render(compute([run], comparisons=[tmp_path]))
    assert (
        f"{agree - 1} of {agree} comparisons with theory agree; these failed: {name} ("
        in (sentences(page)[-1])
    )
    section = page.partition("<h2 id='mask_theory'>")[2].partition("<h2")[0]
    assert section.count("<span class='verdict bad'>✗ disagree</span>") == 1
    row = next(line for line in section.split("<tr>") if "✗ disagree" in line)
    assert f"<a href='#{theorem}'>{theorem}</a>" in row


@pytest.mark.parametrize(
    ("measure", "low", "high", "expected"),
    [
        ("loss", -0.2, -0.1, BETTER), ("loss", 0.1, 0.2, WORSE), ("loss", -0.1, 0.1, WITHIN),
        ("accuracy", 0.1, 0.2, BETTER), ("accuracy", -0.2, -0.1, WORSE),
        ("calibrated_loss", -0.2, -0.1, BETTER), ("loss", np.nan, np.nan, OPEN),
    ],
)  # fmt: skip
def test_an_outcome_is_beyond_its_interval_or_not(measure, low, high, expected):
    row = {"measure": measure, "difference": (low + high) / 2}
    row |= {"difference_low": low, "difference_high": high}
    assert outcome(pd.Series(row)) == expected


def test_runs_are_grouped_by_what_they_learned_and_seeds_share_a_row(page, overview):
    assert set(overview["problem"]) == {"flip, 128 examples", "flip, 64 examples"}
    runs = page.partition("<h2 id='runs'>")[2].partition("<h2")[0]
    assert runs.count("<h3>") == 2 and runs.count("and 2 other seeds") == 8
    scores = page.partition("<h2 id='scores'>")[2].partition("<h2")[0]
    row = next(line for line in scores.split("<tr>") if "apart-droplora-0.001-0" in line)
    assert "1.000" in row and "40 test" in row  # all losses are below 1


def test_problems_of_the_same_words_are_told_apart(tmp_path):
    def learned(name: str, **fields: object) -> Run:
        return write_run(tmp_path / name, seed=0, losses={}, task="flip", train_size=64, **fields)

    runs = [learned("a", steps=5), learned("b", steps=7), learned("c", steps=5, rank=4)]
    parts = parts_of(runs)
    assert [part.name for part in parts] == [
        "flip, 64 examples, 5 steps of pocket", "flip, 64 examples, 7 steps of pocket"
    ]  # fmt: skip
    assert [[run.name for run in part.runs] for part in parts] == [["a", "c"], ["b"]]


def test_contents_and_theorems_are_linked_and_tables_are_there(page, folder):
    anchors = re.findall(r" id='([^']*)'", page)
    assert len(set(anchors)) == len(anchors) and set(THEOREMS) <= set(anchors)
    links = re.findall(r"href='([^']*)'", page)
    within = {link[1:] for link in links if link.startswith("#")}
    assert within <= set(anchors)
    shown = {name for name, analysis in all_analyses().items() if analysis.reading}
    assert shown | {"runs", "scores", "theorems"} <= within
    tables = [link for link in links if not link.startswith("#")]
    assert len(tables) == 4 and all((folder / link).is_file() for link in tables)
    assert all(not Path(link).is_absolute() for link in tables)


def test_every_theorem_that_is_named_is_in_the_list():
    known = re.findall(r"^\| (T\d+) \| ", Path("docs/theory.md").read_text(), re.MULTILINE)
    assert list(THEOREMS) == list(dict.fromkeys(known))
    named = " ".join(claim.statements for claim in CLAIMS)
    named += " ".join(TESTED) + " ".join(one.reading for one in all_analyses().values())
    assert set(re.findall(r"T\d+", named)) <= set(THEOREMS)


def test_numbers_of_theorems_are_linked_in_text_only():
    text = "by T7 <a href='#T7'>T7</a> <code>T7</code> <img alt='T7'> T99 XT7"
    assert linked(text) == text.replace("by T7", "by <a href='#T7'>T7</a>")


def test_figures_are_vectors_of_two_widths_without_text_that_needs_a_font(page):
    section = page.partition("<h2 id='paired_differences'>")[2].partition("<h2")[0]
    found = re.findall(r"(srcset|src)='data:image/svg\+xml;base64,([^']*)'", section)
    assert [kind for kind, _ in found] == ["srcset", "src"] * 2
    widths = []
    for _, data in found[:2]:
        root = ElementTree.fromstring(base64.b64decode(data))
        widths.append(float(root.attrib["width"].removesuffix("pt")) / 72)
        assert not [one for one in root.iter() if one.tag.endswith("}text")]
    assert widths == pytest.approx([3.3, 6.9], abs=0.01)
    assert "<script" not in page and "http" not in re.sub("base64,[^']*", "", page)


def test_the_table_of_differences_says_at_which_rate(page):
    section = page.partition("<h2 id='paired_differences'>")[2].partition("<h2")[0]
    apart = section.split("<h3>")[1]
    assert apart.startswith("flip, 128 examples")
    rows = [re.findall("<td>(.*?)</td>", line) for line in apart.split("<tr>")[2:]]
    masked = {row[1]: row for row in rows if row[0].startswith("DropLoRA")}
    assert set(masked) == {"0.001", "0.002", "its own"}
    for cells in masked.values():
        (loss,) = (cell for cell in cells if "-0.200" in cell)
        assert "<span class='verdict good'>✓ better</span>" in loss
    assert "same learning rate" in re.sub(r"\s+", " ", apart)
