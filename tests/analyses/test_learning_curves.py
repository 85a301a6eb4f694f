from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analyses import learning_curves


@pytest.fixture
def table() -> pd.DataFrame:
    rows = {
        "run": "a",
        "split": "validation",
        "step": np.arange(1, 7),
        "loss": np.linspace(3, 1, 6),
        "eval_response_loss": [np.nan, np.nan, 2.0, np.nan, np.nan, 1.0],
        "eval_exact_match": [np.nan, np.nan, 0.25, np.nan, np.nan, 0.5],
        "eval_examples": [np.nan, np.nan, 64, np.nan, np.nan, 64],
    }
    return pd.DataFrame(rows)


def test_the_figure_names_the_split_and_draws_losses_as_they_are(table):
    both = pd.concat([table, table.assign(run="b", loss=table["loss"] + 1)])
    curves = learning_curves.plot.data(both)
    loss = curves[(curves["name"] == "smooth_loss") & (curves["group"] == "b")]
    values = table["loss"].to_numpy() + 1
    around = [values[max(0, i - 2) : i + 3].mean() for i in range(len(values))]
    assert loss["center"].to_numpy() == pytest.approx(around)
    assert loss["low"].isna().all()
    match = curves[curves["panel"] == "validation exact match"]
    assert list(match.loc[match["group"] == "a", "center"]) == [0.25, 0.5]
    figure = learning_curves.plot(both)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["training loss", "validation loss", "validation exact match"]
    assert "64 validation" in figure.get_suptitle() and "2 runs" in figure.get_suptitle()


def test_runs_that_evaluated_other_splits_get_panels_of_their_own(table):
    both = pd.concat([table, table.assign(run="b", split="test")])
    panels = set(learning_curves.plot.data(both)["panel"])
    assert {"validation loss", "test loss"} <= panels


def test_seeds_share_a_curve_with_their_interval(table):
    seeds = [table.assign(run=name, loss=table["loss"] + i) for i, name in enumerate("abc")]
    together = pd.concat(seeds).assign(configuration="x")
    curves = learning_curves.plot.data(together)
    loss = curves[curves["name"] == "smooth_loss"]
    alone = learning_curves.plot.data(table).groupby("name")["center"]
    assert loss["center"].to_numpy() == pytest.approx(alone.get_group("smooth_loss") + 1)
    assert alone.get_group("loss").to_numpy() == pytest.approx(table["loss"].to_numpy())
    assert (loss["low"] < loss["center"]).all() and set(loss["runs"]) == {3}
