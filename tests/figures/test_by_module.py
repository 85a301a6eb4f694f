"""Where modules differ: curves by projection or layer, and the map with its ranking."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analyses import kit
from subspace_lab.figures.panels import sample_note
from tests.figures.listing import drawn

PANEL = kit.Panel("value")


def planted(runs: dict[str, str | None]) -> pd.DataFrame:
    """Two projections in 12 layers; v moves most, in the last layer above all."""
    axes = [list(runs), range(3), range(12), ["q", "v"]]
    names = ["run", "step", "layer", "projection"]
    table = pd.MultiIndex.from_product(axes, names=names).to_frame(index=False)
    table["module"] = "layers." + table["layer"].astype(str) + "." + table["projection"]
    of_run = table["run"].map(list(runs).index)
    table["value"] = table["step"] * (table["layer"] + 100 * (table["projection"] == "v")) + of_run
    if all(runs.values()):
        table["configuration"] = table["run"].map(runs)
    return table


def test_by_projection_is_the_median_over_the_modules_of_each():
    table = planted({"a": None, "b": None})
    curves = kit.curves_of([PANEL], table, by="projection")
    assert set(curves["facet"]) == {"a", "b"} and set(curves["group"]) == {"q", "v"}
    of_v = curves[(curves["facet"] == "b") & (curves["group"] == "v")].set_index("step")
    truth = table[(table["run"] == "b") & (table["projection"] == "v")]
    medians = truth.groupby("step")["value"].median()
    assert of_v["center"].to_numpy() == pytest.approx(medians.to_numpy())
    assert set(of_v["modules"]) == {12}
    assert sample_note(curves) == "2 runs: median over 12 modules of a projection"
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in drawn(curves, PANEL).axes]
    assert titles == ["value, a", "value, b"]


def test_by_layer_is_in_order_on_a_scale_of_colors_and_seeds_have_intervals():
    table = planted({"a": "x", "b": "x"})
    curves = kit.curves_of([PANEL], table, by="layer")
    assert list(dict.fromkeys(curves["group"])) == [f"layer {i}" for i in range(12)]
    assert set(curves["runs"]) == {2} and set(curves["facet"]) == {"x"}
    assert (curves["low"] < curves["center"]).all()
    axes = drawn(curves, PANEL).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata())]
    red = [line.get_color() for line in lines]
    assert len(set(red)) == 12
    named = [line for line in lines if line.get_label().startswith("layer")]
    assert [line.get_label() for line in (named[0], named[-1])] == ["layer 0", "layer 11"]
    assert len(named) == 8


def test_the_map_ranks_modules_by_their_mean_at_the_last_step():
    table = planted({"a": None, "b": None})
    last = table["step"] == 2
    table.loc[(table["run"] == "b") & last & (table["module"] == "layers.3.q"), "value"] = 900.0
    plot = kit.module_map("value", title="T", unit="1", name="stable_rank")
    cells = plot.shown(table)
    assert "stable_rank" in cells and "value" not in cells
    ranked = cells.drop_duplicates("place").sort_values("place")["module"]
    assert list(ranked[:3]) == ["layers.3.q", "layers.11.v", "layers.10.v"]
    figure = plot(table)
    first, second, ranking = figure.axes[:3]
    assert [axes.get_title() or axes.get_title(loc="left") for axes in (first, second)] == [
        "a",
        "b",
    ]
    values = np.asarray(second.images[0].get_array())
    assert values.shape == (12, 2) and values[3, 0] == 900 and values[11, 1] == 2 * 111 + 1
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 900)
    labels = [label.get_text() for label in ranking.get_yticklabels()]
    assert labels[:3] == ["3 q", "11 v", "10 v"]
    assert ranking.get_ylim()[0] > ranking.get_ylim()[1]  # the highest on top


def test_one_module_has_no_map():
    table = planted({"a": None})
    assert (
        kit.module_map("value", title="T", unit="1")
        .shown(table[table["module"] == "layers.3.q"])
        .empty
    )
