"""The paper's tables: what is published, and what stands beside it."""

from __future__ import annotations

import json
import math
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd
import pytest

from analyses.paper_tables import ANALYSIS, compute, published
from analyses.paper_tables.layout import as_markdown
from analyses.paper_tables.published import AVERAGE, LLAMA2, LLAMA3, TABLE_6, TABLES
from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.evaluation import records
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from tests.training.conftest import command

COMMONSENSE = TABLES[0].columns


@pytest.fixture
def make_run(tmp_path):
    """Write run folders that were evaluated, without training anything."""

    def make(
        name: str, scores: dict[str, float], *, split: str = "test", metric="generated", **fields
    ) -> Run:
        config = TrainConfig(**({"rank": 32, "base": "meta-llama/Llama-2-7b-hf"} | fields))
        folder = tmp_path / name
        folder.mkdir()
        masked = {"keep_prob": config.keep_prob} if config.masked else None
        content = {"config": config.to_dict(), "modules": [], "status": "finished"}
        content |= {"mask": masked} if masked else {}
        (folder / "run.json").write_text(json.dumps(content))
        for task, value in scores.items():
            summary = records.Summary(task, metric, value, 0.1, 100, 5, {"split": split})
            records.write(folder, pd.DataFrame({"task": [task]}), summary)
        return Run(folder)

    return make


def commonsense(value: float) -> dict[str, float]:
    return dict.fromkeys(COMMONSENSE, value)


def cell(table: pd.DataFrame, number: int, model: str, method: str, column: str) -> pd.Series:
    rows = table[(table["table"] == number) & (table["model"] == model)]
    (found,) = [
        row for _, row in rows[(rows["method"] == method) & (rows["column"] == column)].iterrows()
    ]
    return found


def average(row: published.Row) -> Decimal:
    scores = [Decimal(score) for score in row.printed[:-1]]
    return sum(scores) / len(scores)


def half_a_digit(printed: str) -> Decimal:
    """Give what rounding allows: 0.005 with two decimals."""
    return Decimal(1).scaleb(Decimal(printed).as_tuple().exponent) / 2


def test_rows_whose_average_is_not_theirs_are_exactly_the_noted_ones():
    wrong = {
        (table.number, row.model, row.label)
        for table in TABLES
        for row in table.rows
        if len(row.printed) > 1
        and abs(average(row) - Decimal(row.printed[-1])) > half_a_digit(row.printed[-1])
    }
    assert wrong == {
        (1, LLAMA2, "DoRA"),
        (1, LLAMA2, "DropLoRA"),
        *((1, LLAMA3, name) for name in ("MiLoRA (cited)", "LoRA", "DoRA")),
    }
    noted = {(1, model, method) for model, method, _ in TABLES[0].notes}
    assert wrong < noted


def test_the_gains_in_the_notes_are_those_of_the_rows():
    rows = {(row.model, row.label): row for row in TABLES[0].rows}
    for model, own, lora, gain in (
        (LLAMA2, "84.901", "84.384", "0.518"),
        (LLAMA3, "87.609", "86.798", "0.811"),
    ):
        averages = [average(rows[model, name]) for name in ("DropLoRA", "LoRA")]
        # To the third decimal, halves upwards, as numbers are rounded on paper.
        values = [value.quantize(Decimal("0.001"), ROUND_HALF_UP) for value in averages]
        assert list(map(str, values)) == [own, lora]
        assert str((averages[0] - averages[1]).quantize(Decimal("0.001"), ROUND_HALF_UP)) == gain
        note = TABLES[0].notes[model, "DropLoRA", AVERAGE]
        assert all(number in note for number in (own, lora, gain))
    assert average(rows[LLAMA2, "DoRA"]) == average(rows[LLAMA2, "LoRA"])


def impossible(number: int, column: int, examples: int) -> set[tuple[str, str]]:
    """Find the rows whose score is k / examples for no whole k, to the decimals printed."""
    rows = TABLES[number - 1].rows
    return {
        (row.model, row.label)
        for row in rows
        if min(
            abs(Decimal(100 * k) / examples - Decimal(row.printed[column]))
            for k in range(examples + 1)
        )
        > half_a_digit(row.printed[column])
    }


def test_scores_that_no_number_of_right_answers_gives_are_exactly_the_noted_ones():
    sizes = {row.name: int(row.test.replace(",", "")) for row in TABLE_6}
    sizes |= {"HumanEval": 164, "MBPP": 378}
    found = {
        (table.number, *place, title)
        for table in TABLES[:3]
        for column, title in enumerate(table.columns.values())
        for place in impossible(table.number, column, sizes[title])
        if title != "PIQA"
    }
    assert found == {
        (2, LLAMA3, "DoRA", "MATH"),
        (2, LLAMA3, "DropLoRA", "GSM8K"),
        (3, LLAMA3, "LoRA", "HumanEval"),
        (3, LLAMA2, "Full (cited)", "MBPP"),
    }
    assert all(TABLES[number - 1].notes[tuple(place)] for number, *place in found)
    piqa = list(COMMONSENSE).index("piqa")
    assert len(impossible(1, piqa, sizes["PIQA"])) == 7
    assert not impossible(1, piqa, 1838)


def test_table_6_adds_up():
    rows = {row.name: row for row in TABLE_6}
    assert sum(int(rows[name].train.removesuffix("K")) for name in ("GSM8K", "MATH")) == 395
    assert int(rows["Python"].test) == 164 + 399
    assert set(COMMONSENSE.values()) < set(rows)


def test_the_other_notes_hold():
    rows = {(t.number, r.model, r.label): r for t in TABLES for r in t.rows}
    assert rows[1, LLAMA3, "MiLoRA"].printed == rows[1, LLAMA2, "MiLoRA"].printed
    full, lora = rows[3, LLAMA2, "Full (cited)"].scores[1], rows[3, LLAMA2, "LoRA"].scores[1]
    assert round(142 / 399 * 100, 2) == full
    assert not any(round(100 * k / 378, 2) == full for k in range(379))
    assert any(round(100 * k / 378, 2) == lora for k in range(379))
    llama3 = {m: rows[4, LLAMA3, m].scores[0] for m in ("LoRA", "DropLoRA")}
    assert llama3["DropLoRA"] - llama3["LoRA"] == pytest.approx(0.11)
    assert rows[3, LLAMA3, "DropLoRA"].scores[0] < rows[3, LLAMA3, "LoRA"].scores[0]


def test_notes_name_cells_that_exist():
    for table in TABLES:
        known = {(row.model, row.label) for row in table.rows}
        titles = {"", AVERAGE, *table.columns.values()}
        for model, method, column in table.notes:
            assert (model, method) in known
            assert column in titles


def test_every_published_row_fills_its_columns():
    for table in TABLES:
        for row in table.rows:
            assert len(row.printed) == len(table.columns) + (len(table.columns) > 1)


def test_seeds_are_averaged_and_settings_are_not(make_run):
    runs = [make_run(f"lora-{s}", commonsense(0.8 + 0.01 * s), seed=s) for s in range(3)]
    runs += [make_run("half", commonsense(0.7), method="droplora", keep_prob=0.5)]
    runs += [make_run("most", commonsense(0.9), method="droplora", keep_prob=0.9)]
    table = compute(runs)
    lora = cell(table, 1, LLAMA2, "LoRA", AVERAGE)
    assert (lora["published"], lora["seeds"]) == (84.38, 3)
    assert lora["mean"] == pytest.approx(81)
    assert lora["high"] - lora["mean"] == pytest.approx(4.302653 / math.sqrt(3))  # t_2 at 97.5 %
    drop = table[(table["table"] == 1) & (table["method"] == "DropLoRA")]
    drop = drop[(drop["model"] == LLAMA2) & (drop["column"] == AVERAGE)]
    assert drop["mean"].tolist() == pytest.approx([70, 90])
    assert drop["published"].tolist()[0] == 84.91
    assert math.isnan(drop["published"].tolist()[1])
    assert drop["settings"].str.extract(r"keep_prob ([\d.]+)")[0].tolist() == ["0.5", "0.9"]


def test_other_ranks_bases_and_masked_methods_get_rows_of_their_own(make_run):
    table = compute(
        [
            make_run("r16", commonsense(0.6), rank=16),
            make_run("small", commonsense(0.5), base="smollm2"),
            make_run("masked", commonsense(0.4), method="dora", rank_mask=True),
        ]
    )
    first = table[(table["table"] == 1) & (table["column"] == AVERAGE) & (table["seeds"] > 0)]
    assert first["published"].isna().all()
    told = set(zip(first["model"], first["method"], first["mean"].round(6), strict=True))
    assert told == {
        (LLAMA2, "LoRA", 60.0),
        ("smollm2", "LoRA", 50.0),
        (LLAMA2, "DoRA with a mask", 40.0),
    }
    fifth = table[(table["table"] == 5) & (table["seeds"] > 0)]
    assert fifth["published"].tolist()[0] == 84.5  # Table 5 has LoRA of rank 16
    assert fifth["model"].tolist() == [LLAMA2, "smollm2"]


def test_missing_columns_give_no_average_and_validation_rows_no_value(make_run):
    scores = commonsense(0.8)
    del scores["piqa"]
    table = compute(
        [make_run("most", scores), make_run("val", {"piqa": 0.9}, split="validation", seed=1)]
    )
    assert cell(table, 1, LLAMA2, "LoRA", "BoolQ")["mean"] == pytest.approx(80)
    assert cell(table, 1, LLAMA2, "LoRA", "PIQA")["seeds"] == 0
    assert cell(table, 1, LLAMA2, "LoRA", AVERAGE)["seeds"] == 0


def test_a_copied_run_is_no_second_seed_and_others_must_be_alike(make_run):
    first = make_run("lora", commonsense(0.8))
    with pytest.raises(UserError, match=r"copy has the configuration and seeds of .*lora"):
        compute([first, make_run("copy", commonsense(0.8), cores="light")])
    with pytest.raises(UserError, match=r"steps 0 and .*short has 24"):
        compute([first, make_run("short", commonsense(0.5), method="dora", steps=24)])
    with pytest.raises(UserError, match="boolq was evaluated with metric generated in"):
        compute([first, make_run("other", commonsense(0.5), method="dora", metric="likelihood")])
    small = make_run("small", commonsense(0.5), base="smollm2", steps=24)  # of another base
    slow = make_run("slow", commonsense(0.7), learning_rate=1e-5)
    table = compute([first, small, slow])
    rows = table[(table["table"] == 1) & (table["column"] == AVERAGE) & (table["seeds"] > 0)]
    told = dict(zip(rows["mean"].round(6), rows["settings"], strict=True))
    assert told == {80.0: "rank 32", 50.0: "rank 32", 70.0: "rank 32, learning_rate 1e-05"}


def test_mt_bench_is_no_percentage(make_run):
    table = compute([make_run("chat", {"mt_bench": 5.25})])
    assert cell(table, 4, LLAMA2, "LoRA", "MT-Bench")["mean"] == 5.25


def test_math_stands_at_rank_64(make_run):
    table = compute([make_run("math", {"gsm8k": 0.6, "math": 0.2}, rank=64, task="metamathqa")])
    assert cell(table, 2, LLAMA2, "LoRA", AVERAGE)["mean"] == pytest.approx(40)
    assert cell(table, 2, LLAMA2, "LoRA", AVERAGE)["published"] == 40.84


def test_layout(make_run):
    text = as_markdown(compute([make_run(f"{s}", commonsense(0.8), seed=s) for s in (0, 1)]))
    assert "84.38 / 80.00 [71.12, 86.66] (2)" in text  # Wilson's for 80 of 100
    assert "| LLaMA3-8B | MiLoRA [6] |" in text
    assert "[6] this row equals" in text
    assert "| 84.91 [2] /" in text and "[2] the row's eight values average 84.901" in text
    sixth = text.split("Table 6")[1]
    assert "| PIQA | CS | 16.1K | 1,830 [1] | Option |" in sixth
    assert "[1] seven of the PIQA accuracies" in sixth
    assert "| 87.00 /" in text.split("Table 2")[0]
    assert text.count("No measured results for this table.") == 3


def test_accuracies_of_0_percent_have_wilsons_interval(make_run):
    text = as_markdown(compute([make_run(f"{s}", commonsense(0.0), seed=s) for s in (0, 1)]))
    assert "84.38 / 0.00 [0.00, 3.70] (2)" in text  # z^2 / (100 + z^2) with z = 1.96


def test_runs_without_scores_are_named(make_run, tmp_path):
    run = make_run("lora", commonsense(0.8))
    unevaluated = make_run("later", {}, seed=1)
    out = tmp_path / "out"
    done = command(
        "analyses.paper_tables", "--runs", run.path, unevaluated.path, "--out", out, "--format",
        "png",
    )  # fmt: skip
    for text in (done.stdout, (out / "paper_tables.md").read_text()):
        assert f"Not in the tables:\n\n- {unevaluated.path} was not evaluated" in text


def test_runs_scored_on_different_examples_are_refused(make_run):
    found = [make_run(f"{seed}", {"boolq": 0.5}, seed=seed) for seed in (0, 1)]
    for run, prompt in zip(found, "ab", strict=True):
        table = pd.DataFrame({"prompt_hash": [prompt], "gold": ["true"]})
        files.write_table(run.path / "evaluations" / "boolq.parquet", table)
    with pytest.raises(UserError, match=r"boolq was not evaluated on the same examples in .*0 \("):
        compute(found)


def test_figures_hold_measured_and_published(make_run):
    runs = [make_run("lora", commonsense(0.8))]
    runs += [
        make_run(f"k{keep}", commonsense(keep), method="droplora", keep_prob=keep)
        for keep in (0.5, 0.7)
    ]
    table = compute(runs)
    figures = {name: plot(table) for name, plot in ANALYSIS.plots.items()}
    (panel,) = figures["figure2"].axes  # math and code were not measured
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert lines["LLaMA2-7B, r 32: LoRA"].get_ydata()[0] == pytest.approx(80)
    assert lines["published LoRA, LLaMA2-7B"].get_ydata()[0] == 84.38
    (drawn,) = panel.containers
    assert drawn.lines[0].get_xdata().tolist() == pytest.approx([0.3, 0.5])
    assert drawn.lines[0].get_ydata().tolist() == pytest.approx([70, 50])
    ranks = figures["figure3"].axes[0]
    curves = [curve.lines[0] for curve in ranks.containers]
    for apart in ([curve.get_xdata()[0] for curve in curves], [c.get_marker() for c in curves]):
        assert len(set(apart)) == 3  # of one rank, none hides another
    assert [curve.get_label() for curve in ranks.containers] == [
        "LLaMA2-7B: LoRA",
        *(f"LLaMA2-7B: DropLoRA, step mask, rescaled, keep_prob {keep}" for keep in (0.5, 0.7)),
    ]


def test_command_writes_tables_and_figures(make_run, tmp_path):
    run = make_run("lora", commonsense(0.8))
    out = tmp_path / "out"
    done = command("analyses.paper_tables", "--runs", run.path, "--out", out, "--format", "png")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {
        "paper_tables.parquet",
        "paper_tables.csv",
        "paper_tables.json",
        "paper_tables.md",
        "figure2.png",
        "figure2.figure.csv",
        "figure2.figure.parquet",
        "figure3.png",
        "figure3.figure.csv",
        "figure3.figure.parquet",
    }
    published_only = command("analyses.paper_tables", "--out", tmp_path / "none")
    assert "no figure figure2: the table has nothing that it draws" in published_only.stdout
    assert not list((tmp_path / "none").glob("figure*"))
    missing = command("analyses.paper_tables", "--runs", f"{tmp_path}/nothing-*")
    assert missing.returncode == 2
    assert "no run matches" in missing.stderr
