"""The variance of planted scores is split among the seeds that made it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from analyses.seed_variance import ANALYSIS, as_markdown, compute
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from tests.analyses.documented import documented

SIZES = {"data": 0.3, "mask": 0.1}


def planted(folder, score, **fields) -> Run:
    """Write a run that its training scored."""
    folder.mkdir(parents=True)
    config = TrainConfig(task="flip", **fields).to_dict()
    content = {"config": config, "modules": [], "status": "finished"}
    (folder / "run.json").write_text(json.dumps(content))
    row = {"step": 5, "test_examples": 50.0, "test_exact_match": 0.0, "test_response_loss": score}
    pd.DataFrame([row]).to_parquet(folder / "metrics.parquet")
    return Run(folder)


def test_each_seed_has_the_variance_that_it_makes(tmp_path):
    """Effects of 4 data and 4 mask seeds add up: pooled variances within rows and columns."""
    rng = np.random.default_rng(0)
    data, mask = (size * rng.normal(size=4) for size in SIZES.values())
    runs = [
        planted(
            tmp_path / f"{i}-{j}", 2 + data[i] + mask[j], method="droplora", seed=7, data_seed=i,
            mask_seed=100 + j,
        )
        for i in range(4) for j in range(4)
    ]  # fmt: skip
    table = compute(runs)
    assert set(table.columns) == documented("seed_variance")
    losses = table[table["measure"] == "loss"].set_index("seeds")
    assert list(losses.index) == ["data", "mask", "data+mask"]
    assert losses["variance"]["data"] == pytest.approx(data.var(ddof=1))
    assert losses["variance"]["mask"] == pytest.approx(mask.var(ddof=1))
    together = data.var(ddof=1) + mask.var(ddof=1)
    assert losses["variance"]["data+mask"] == pytest.approx(together)
    assert losses["share"]["mask"] == pytest.approx(mask.var(ddof=1) / together)
    assert losses["pairs"].tolist() == [4 * 6, 4 * 6, 2 * 6 * 6]
    assert losses["runs"].tolist() == [16, 16, 16]
    assert (table.loc[table["measure"] == "accuracy", "variance"] == 0).all()
    assert "| data+mask |" in as_markdown(table)


def test_plain_seeds_differ_in_all_that_has_an_effect(tmp_path):
    lora = [planted(tmp_path / f"l{s}", s, method="lora", seed=s) for s in (0, 1, 3)]
    noisy = [
        planted(tmp_path / f"d{s}", s, method="droplora", seed=s, label_noise=0.2) for s in (0, 2)
    ]
    (row,) = compute(lora).query("measure == 'loss'").to_dict("records")
    assert row["seeds"] == "data+init+seed" and row["pairs"] == 3 and row["share"] == 1
    assert row["variance"] == pytest.approx(np.var([0, 1, 3], ddof=1))
    (row,) = compute(noisy).query("measure == 'loss'").to_dict("records")
    assert row["seeds"] == "data+init+mask+noise+seed"


def test_nothing_to_split_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no two of these runs repeat a configuration"):
        compute([planted(tmp_path / "one", 1.0, method="lora")])


def test_figure_has_a_panel_for_each_measure_and_a_place_for_each_set_of_seeds():
    rows = [
        ("LoRA", 1e-3, "flip", measure, seeds, deviation, 4)
        for measure in ("accuracy", "loss")
        for seeds, deviation in (("data+init", 0.3), ("init", 0.1), ("data", 0.2))
    ]
    names = ["configuration", "learning_rate", "task", "measure", "seeds", "standard_deviation"]
    table = pd.DataFrame(rows, columns=[*names, "runs"])
    figure = ANALYSIS.plots["seed_variance"](table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["accuracy", "loss"]
    (points,) = [line for line in figure.axes[0].lines if line.get_label() == "LoRA at 0.001"]
    by_place = dict(zip(points.get_xdata(), points.get_ydata(), strict=True))
    assert [by_place[place] for place in range(3)] == [0.2, 0.1, 0.3]  # data, init, data + init
