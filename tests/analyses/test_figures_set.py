"""The figure set: what is drawn of which runs, its captions, numbers and LaTeX."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses import ensemble_vs_single, figures, gate_expansion, grassmann, kit, paired_differences
from analyses.figures import drawing, samples
from analyses.figures.captions import SPECIAL, Caption, caption_file, escape
from analyses.figures.figure_set import FIGURES, SetFigure
from analyses.figures.heat_maps import layer_cells, overlap_means
from analyses.figures.over_seeds import points_over_seeds
from analyses.figures.sources import (
    MAX_SNAPSHOTS,
    configuration_names,
    of_each_run,
    overlaps_of_seeds,
)
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.sweeping.grid import read_sweep
from subspace_lab.training.config import TrainConfig
from tests.analyses.scored_runs import write_run
from tests.analyses.test_command import assert_one_sentence

OF_MODELS = {"ensemble_vs_single", "gate_expansion"}
OF_SCORES = {"paired_differences", "learning_rates"}
DROPPED = "DropLoRA (step mask, rescaled, keep_prob 0.5)"


def copy_run(run: Run, folder, **config) -> Run:
    shutil.copytree(run.path, folder)
    description = json.loads((folder / "run.json").read_text())
    fields = {"method": "droplora", "granularity": "step", "rank": 4, "steps": 6}
    settings = TrainConfig(base="/no/such_base", **fields, **config)
    description["config"] |= settings.to_dict()
    (folder / "run.json").write_text(json.dumps(description))
    return Run(folder)


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory) -> list[Run]:
    """Give two rates of two seeds each; of a rate all are alike."""
    folder = tmp_path_factory.mktemp("figures")
    return [
        copy_run(run, folder / f"{rate:g}_{seed}", learning_rate=rate, seed=seed)
        for rate in (0.01, 0.02)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("set")
    with pytest.MonkeyPatch.context() as patch:
        command = ["figures", "--run", *(str(run.path) for run in runs)]
        patch.setattr("sys.argv", [*command, "--out", str(out), "--venue", "acl"])
        figures.main()
    return out


def test_each_figure_is_drawn_or_says_what_the_runs_lack(drawn):
    index = (drawn / "captions.md").read_text()
    listed = re.findall(r"^## (\w+)\.pdf$", index, re.MULTILINE)
    missing = dict(re.findall(r"^- (\w+): (.+)$", index.partition("## Not drawn")[2], re.MULTILINE))
    assert set(listed) == {figure.name for figure in FIGURES} - OF_MODELS - OF_SCORES
    assert set(missing) == OF_MODELS | OF_SCORES
    assert "python -m subspace_lab.evaluate" in missing["paired_differences"]
    assert "/no/such_base" in missing["ensemble_vs_single"]
    suffixes = ("pdf", "png", "csv", "caption.tex")
    files = {f"{name}.{suffix}" for name in listed for suffix in suffixes}
    assert {path.name for path in drawn.iterdir()} == files | {"figures.tex", "captions.md"}


def test_fonts_are_truetype_and_the_width_is_the_venue_s(drawn):
    for path in drawn.glob("*.pdf"):
        content = path.read_bytes()
        assert b"/FontFile2" in content and b"/Type3" not in content, path.name
        width = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
        assert width and float(width[1]) == pytest.approx(3.03 * 72, abs=0.01), path.name


def test_captions_have_data_sample_size_and_interval(drawn):
    caption = (drawn / "effective_rank.caption.tex").read_text()
    both = escape(f"{DROPPED} at 0.01, 0.02 (2 seeds each)")
    assert f"Data: {both}; base /no/such\\_base, task pocket, 6 steps. " in caption
    assert re.search(r"n: median over \d+ modules, mean over 2 seeds\. ", caption)
    assert "Interval: 95 \\% t interval over seeds." in caption
    table = pd.read_csv(drawn / "effective_rank.csv")
    measured = table[table["kind"] == "measured"]
    assert set(measured["runs"]) == {2}
    assert set(measured["group"]) == {f"{DROPPED} at {rate}" for rate in (0.01, 0.02)}


def test_the_document_includes_what_there_is_and_compiles(drawn):
    text = (drawn / "figures.tex").read_text()
    included = re.findall(r"\\(?:includegraphics|input)\{(.+?)\}", text)
    parts = [path for path in drawn.iterdir() if path.suffix in (".pdf", ".tex")]
    assert sorted([*included, "figures.tex"]) == sorted(path.name for path in parts)
    for path in drawn.glob("*.tex"):
        content = path.read_text()
        assert content.isascii(), path.name
        bare = re.sub(r"\\[{}]", "", content)
        depths = list(itertools.accumulate((c == "{") - (c == "}") for c in bare))
        assert min(depths) >= 0 and depths[-1] == 0, path.name
        words = re.sub(r"\\(label|input|includegraphics)\{.*?\}", "", content)
        assert not re.search(r"(?<!\\)[_%#&]", words), path.name
    for engine in (["tectonic"], ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"]):
        if shutil.which(engine[0]):
            command = [*engine, "figures.tex"]
            done = subprocess.run(command, cwd=drawn, capture_output=True, check=False)
            assert done.returncode == 0, done.stdout.decode()[-800:]
            (drawn / "figures.pdf").unlink()
            for rest in ("log", "aux"):
                (drawn / f"figures.{rest}").unlink(missing_ok=True)
            return


def planted(name: str = "planted") -> kit.Analysis:
    """Give an analysis whose only value is that of the run's seed: 3 ** seed."""

    def compute(run, *, steps, modules):
        if run.config["seed"] > 8:
            raise UserError(f"{run.path} has no values: record some")
        rows = [(run.name, step, "m", 3.0 ** run.config["seed"] * step) for step in (1, 2)]
        return pd.DataFrame(rows, columns=["run", "step", "module", "value"])

    return kit.Analysis(
        name=name, description="", question="", compute=compute, summarize=lambda table: {},
        needs=kit.Needs(0), plot=kit.curves_over_steps(kit.Panel("value"), title="Planted"),
    )  # fmt: skip


def write_seeds(folder, seeds, **fields) -> list[Run]:
    return [write_run(folder / f"s{seed}", seed=seed, losses={}, **fields) for seed in seeds]


def test_seeds_of_a_configuration_have_their_mean_and_t_interval(tmp_path, monkeypatch):
    lora = write_seeds(tmp_path / "lora", (0, 1, 2, 9), method="lora")
    other = write_seeds(tmp_path / "dora", (3,), method="dora")
    for run in other:
        run.name = "other"
    analysis = planted()
    figure = SetFigure("planted", "Values.", of_each_run(analysis), analysis.plot)
    monkeypatch.setattr(drawing, "FIGURES", (figure,))
    ((caption,), missing) = drawing.draw_set([*lora, *other], tmp_path / "out", width=3)
    shown = pd.read_csv(tmp_path / "out" / "planted.csv").set_index(["group", "step"])
    values = 2 * 3.0 ** np.arange(3)
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    row = shown.loc["LoRA", 2]
    assert row[["center", "low", "high"]].tolist() == pytest.approx([values.mean(), low, high])
    assert row["runs"] == 3 and shown.loc["DoRA", 2]["center"] == 54
    assert missing == {}
    assert caption.data.startswith("LoRA (3 seeds), DoRA (1 seed); ")
    assert caption.n == "median over 1 module, mean over 1 to 3 seeds"
    assert list(caption.left_out) == [f"{lora[3].path} has no values: record some"]


def test_runs_without_anything_are_refused_in_a_sentence(tmp_path, monkeypatch):
    analysis = planted()
    figure = SetFigure("planted", "Values.", of_each_run(analysis), analysis.plot)
    monkeypatch.setattr(drawing, "FIGURES", (figure,))
    runs = write_seeds(tmp_path, (9,), method="lora")
    with pytest.raises(UserError, match=r"nothing for any figure: .* has no values: record some"):
        drawing.draw_set(runs, tmp_path / "out", width=3)
    assert not (tmp_path / "out").exists()


def test_a_path_without_a_run_is_refused(command, tmp_path):
    outcome = command("figures", "--run", tmp_path / "nothing", "--out", tmp_path / "out")
    assert_one_sentence(outcome)


def test_tables_written_since_the_run_ended_are_read(tmp_path):
    (run,) = write_seeds(tmp_path, (1,), method="lora")
    source = of_each_run(planted())
    assert source([run], {run.name: "LoRA"})["value"].tolist() == [3, 6]
    run.output_folder.mkdir()
    path = run.output_folder / "planted.parquet"
    written = pd.DataFrame({"run": "its old name", "step": [1], "module": "m", "value": [7.0]})
    written.assign(configuration="old").to_parquet(path)
    table = source([run], {run.name: "LoRA"})
    assert table[["run", "configuration", "value"]].to_numpy().tolist() == [[run.name, "LoRA", 7]]
    (run.path / "run.json").touch()
    assert source([run], {run.name: "LoRA"})["value"].tolist() == [3, 6]


def test_whole_models_are_evaluated_at_few_snapshots(run):
    asked = []

    def compute(run, *, steps, modules):
        asked.append(steps)
        return pd.DataFrame({"run": [run.name]})

    analysis = replace(planted(), compute=compute, needs=kit.Needs.MODEL)
    of_each_run(analysis, all_snapshots=True)([run], {run.name: "x"})
    snapshots = sorted(run.snapshots)
    assert asked[0][0] == snapshots[0] and asked[0][-1] == snapshots[-1]
    assert len(asked[0]) == MAX_SNAPSHOTS < len(snapshots)


def test_configurations_have_the_names_of_the_comparisons(tmp_path):
    def write(name, rate, **fields):
        return [
            write_run(
                tmp_path / f"{name}{rate}{seed}", seed=seed, losses={"pocket": np.full(9, 0.5)},
                learning_rate=rate, **fields
            )
            for seed in (0, 1)
        ]  # fmt: skip

    masked = {"method": "droplora", "granularity": "step"}
    one_rate = [*write("lora", 1e-3, method="lora"), *write("step", 1e-3, **masked)]
    two_rates = [*one_rate, *write("lora", 2e-3, method="lora"), *write("step", 2e-3, **masked)]
    for runs in (one_rate, two_rates):
        named = list(dict.fromkeys(configuration_names(runs).values()))
        table = paired_differences.compute(runs)
        of_equal = table[table["rates"] == "equal"]
        assert sorted(named) == sorted(of_equal["configuration"].unique())
    assert len(named) == 4 and named[0] == "LoRA at 0.001"


def points(value: float, run: str, **more) -> dict:
    return {"run": run, "value": value, "low": value - 1, "high": value + 1, **more}


def test_points_of_models_are_reduced_over_seeds():
    rows = [points(value, run, kind="measured", x=1.0, holds=value > 1, examples=4)
            for run, value in (("a", 1.0), ("b", 2.0), ("c", 6.0), ("d", 5.0))]  # fmt: skip
    rows += [points(9.0, "a", kind="measured", x=np.nan, holds=True, examples=4),
             points(8.0, "a", kind="one mask", x=1.0, holds=True, examples=4),
             points(7.0, "a", kind="one mask", x=1.0, holds=True, examples=4)]  # fmt: skip
    table = pd.DataFrame({"run": list("abcd"), "configuration": ["X", "X", "X", "Y"]})
    shown = points_over_seeds(lambda _: pd.DataFrame(rows), ["kind", "x"])(table)
    mean, alone = (shown[(shown["run"] == name) & (shown["x"] == 1) & (shown["kind"] == "measured")]
                   for name in "XY")  # fmt: skip
    low, high = stats.t.interval(0.95, 2, 3.0, stats.sem([1.0, 2.0, 6.0]))
    columns = ["value", "low", "high", "seeds", "holds"]
    assert mean[columns].to_numpy().tolist() == [pytest.approx([3, low, high, 3, False])]
    assert alone[columns].to_numpy().tolist() == [[5, 4, 6, 1, True]]
    assert sorted(shown.loc[shown["kind"] == "one mask", "value"]) == [7, 8]
    assert shown.loc[shown["x"].isna(), "value"].tolist() == [9]


@pytest.mark.parametrize("name", sorted(OF_MODELS))
def test_intervals_over_seeds_are_drawn(name):
    plot = {"ensemble_vs_single": ensemble_vs_single, "gate_expansion": gate_expansion}[name].plot
    common = {"run": "X", "examples": 9, "split": "test", "masks": 2, "dtype": "fp32", "seeds": 3}
    value = {"value": 0.5, "low": 0.2, "high": 0.9}
    if name == "ensemble_vs_single":
        of_loss = {"panel": "loss", "predictor": "scaled", "kind": "measured", **value}
        shown = [{**of_loss, "scale": scale} for scale in (0.0, 1.0)]
        shown += [of_loss | {"panel": panel, "predictor": "single"}
                  for panel in ("cost", "accuracy")]  # fmt: skip
        panels = ["loss", "cost", "accuracy"]
    else:
        law = {"granularity": "step", "keep_prob": 0.5, "assumed": False, "holds": True}
        shown = [{"step": 0, "quantity": quantity, **law, **value}
                 for quantity in ("measured", "second")]  # fmt: skip
        panels = ["X"]
    figure = plot.figure(pd.DataFrame([common | row for row in shown]), kit.Page(titled=False))
    assert len(figure.axes) == len(panels)
    for axes in figure.axes:
        segments = [
            segment[:, 1]
            for lines in axes.collections
            if hasattr(lines, "get_segments")
            for segment in lines.get_segments()
        ]
        assert any(np.allclose(sorted(ends), [0.2, 0.9]) for ends in segments), axes


def test_layers_over_steps_are_means_over_seeds_of_medians_over_modules():
    rng = np.random.default_rng(0)
    index = itertools.product(("a", "b"), (0, 1), (5, 10), ("q", "k", "v"))
    table = pd.DataFrame(index, columns=["run", "layer", "step", "projection"])
    table = table.assign(value=rng.exponential(size=len(table)), configuration="X")
    cells = layer_cells(table, value="value", rows=lambda rows: rows)
    assert len(cells) == 4 and set(cells["modules"]) == {3} and set(cells["seeds"]) == {2}
    for cell in cells.itertuples():
        rows = table[(table["layer"] == cell.layer) & (table["step"] == cell.step)]
        medians = [np.median(rows.loc[rows["run"] == run, "value"]) for run in "ab"]
        assert cell.value == pytest.approx(np.mean(medians))
    one = layer_cells(table[table["layer"] == 0], value="value", rows=lambda rows: rows)
    assert one.empty


def test_overlaps_are_those_of_each_seed_with_the_next(run, runs):
    names = configuration_names(runs)
    table = overlaps_of_seeds(runs, names)
    means = overlap_means(table, side="row")
    assert set(means["configuration"]) == set(names.values()) and set(means["pairs"]) == {1}
    equal = means[means["i"] == means["j"]]
    assert np.allclose(equal["phi"], 1)  # the seeds of the fixture are copies
    direct = grassmann.compute(run, run, steps=(6, 6))
    of_update = direct[(direct["matrix"] == "update") & (direct["side"] == "row")]
    expected = of_update[(of_update["i"] == 1) & (of_update["j"] == 3)]["phi"].mean()
    found = means[(means["i"] == 1) & (means["j"] == 3)]["phi"]
    assert found.to_numpy() == pytest.approx(expected)


def test_one_seed_has_no_overlaps(runs):
    with pytest.raises(UserError, match="one seed: train several"):
        overlaps_of_seeds(runs[:1], configuration_names(runs[:1]))


def test_sample_sizes_of_models_name_examples_masks_and_seeds():
    shown = pd.DataFrame({"seeds": [1, 3, 2], "masks": 8, "dtype": "fp32", "examples": 64,
                          "split": "test"})  # fmt: skip
    n, interval = samples.of_points(shown)
    assert n == "64 test examples, 8 masks, computed in fp32, mean over 2 to 3 seeds"
    assert interval == "95 % t interval over seeds"
    assert samples.of_points(shown.assign(seeds=1))[1] == "95 % (Wilson) of exact match"


def test_what_latex_would_read_as_a_command_is_escaped():
    assert escape(r"a_b 95 % {x} \n #1 & $y^2~<|>") == (
        r"a\_b 95 \% \{x\} \textbackslash{}n \#1 \& \$y\textasciicircum{}2\textasciitilde{}"
        r"\textless{}\textbar{}\textgreater{}"
    )
    assert all(SPECIAL[character].isascii() for character in SPECIAL)
    content = caption_file(Caption("a_b", "Shows.", "r_1 (2 seeds)", "3", "95 %"))
    assert content == (
        "\\caption{Shows. Data: r\\_1 (2 seeds). n: 3. Interval: 95 \\%.}\n\\label{fig:a_b}\n"
    )


def test_every_caption_is_written_for_latex():
    for figure in FIGURES:
        assert figure.shows.isascii() and figure.shows == escape(figure.shows), figure.name
        assert figure.shows.endswith(".")


def test_the_recipe_of_the_page_is_a_sweep_of_two_rates_and_three_seeds(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "figures.md").read_text("utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert len(read_sweep(tmp_path / "recipe.yaml").jobs) == 2 * 2 * 3
