"""The numbers that figures of curves show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses import kit
from analyses.kit.curves import curve_table, thin
from subspace_lab.figures.curves import limits_of
from tests.figures.listing import drawn
from tests.figures.tables import make_table


def test_one_run_is_median_and_quartiles_over_modules():
    table = make_table({"a": None})
    curve = curve_table(table, "value")
    for row in curve.itertuples():
        values = table.loc[table["step"] == row.step, "value"]
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        assert (row.low, row.center, row.high) == pytest.approx(tuple(quartiles))
    assert set(curve["modules"]) == {7} and set(curve["band"]) == {"quartiles over modules"}


def test_several_runs_are_a_curve_each_without_a_band():
    table = make_table({"a": None, "b": None})
    curves = curve_table(table, "value")
    assert list(curves["group"].unique()) == ["a", "b"]
    assert curves["low"].isna().all() and set(curves["band"]) == {""}
    medians = table[table["run"] == "b"].groupby("step")["value"].median()
    of_run = curves.loc[curves["group"] == "b", "center"]
    assert of_run.to_numpy() == pytest.approx(medians.to_numpy())


def test_several_runs_at_one_step_have_quartiles():
    table = make_table({"a": None, "b": None}, steps=1)
    curves = curve_table(table, "value").set_index("group")
    for run, rows in table.groupby("run"):
        quartiles = np.quantile(rows["value"], [0.25, 0.5, 0.75])
        assert tuple(curves.loc[run, ["low", "center", "high"]]) == pytest.approx(tuple(quartiles))


def test_seeds_are_one_curve_with_the_t_interval_of_their_medians():
    table = make_table({"a": "x", "b": "x", "c": "x", "d": "y"})
    curves = curve_table(table, "value")
    medians = table[table["run"] != "d"].groupby(["step", "run"])["value"].median().unstack()
    for row in curves[curves["group"] == "x"].itertuples():
        truth = stats.ttest_1samp(medians.loc[row.step], 0).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx(tuple(truth))
        assert row.runs == 3
    assert curves.loc[curves["group"] == "y", "low"].isna().all()


def test_thinning_keeps_the_ends_and_whole_steps():
    table = make_table({"a": None}, steps=1000, modules=2)
    steps = thin(table, most=50)["step"]
    assert steps.nunique() == 50 and {0, 999} <= set(steps)
    assert steps.value_counts().eq(2).all()
    assert np.diff(np.unique(steps)).max() <= 21


def test_missing_values_leave_gaps_out():
    table = make_table({"a": None})
    table.loc[table["step"] == 2, "value"] = np.nan
    assert list(curve_table(table, "value")["step"]) == [0, 1, 3, 4]


def test_panels_choose_rows_columns_and_units():
    table = make_table({"a": None}).assign(kind="k", low=0.25, high=0.75)
    other = table.assign(kind="other", value=np.nan)
    panels = [
        kit.Panel("value", by="kind", labels={"k": "shown"}, degrees=True, where={"kind": "k"}),
        kit.Panel({"value": "one", "expected": "two"}, title="two columns"),
        kit.Panel("value", title="positive", scale="log"),
        kit.Panel("missing"),
        kit.Panel(
            "value",
            title="rows",
            rows=lambda rows: rows[rows["step"] == 3],
            over=None,
            expected="expected",
            expected_band=("low", "high"),
        ),
    ]
    curves = kit.curves_of(panels, pd.concat([table, other]))
    medians = table.groupby("step")["value"].median()
    first = curves[curves["panel"] == "value"]
    assert first["center"].to_numpy() == pytest.approx(np.degrees(medians.to_numpy()))
    assert set(first["shown"]) == {"shown"} and set(first["name"]) == {"k"}
    two = curves[curves["panel"] == "two columns"]
    assert list(two["shown"].unique()) == ["one", "two"]
    positive = curves[curves["panel"] == "positive"].set_index("step")["center"]
    truth = table[table["value"] > 0].groupby("step")["value"].median()
    assert positive.to_numpy() == pytest.approx(truth.to_numpy())
    measured, predicted = curves[curves["panel"] == "rows"].itertuples()
    assert measured.center == pytest.approx(medians[3]) and predicted.kind == "predicted"
    assert (predicted.low, predicted.center, predicted.high) == (0.25, 0.5, 0.75)
    assert "missing" not in set(curves["panel"])
    figure = drawn(curves, *panels)
    assert [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes] == [
        "value", "two columns", "positive", "rows"
    ]  # fmt: skip


def test_labels_that_would_crowd_a_comparison_are_left_out():
    panel = kit.Panel("value", by="kind", only_alone=("b",))

    def names(runs: dict[str, str | None], steps: int) -> set[str]:
        table = make_table(runs, steps=steps)
        both = pd.concat([table.assign(kind="a"), table.assign(kind="b")])
        return set(kit.curves_of([panel], both)["name"])

    assert names({"x": None}, 5) == {"a", "b"} and names({"x": None, "y": None}, 1) == {"a", "b"}
    assert names({"x": None, "y": None}, 5) == {"a"}


@pytest.mark.parametrize("log", [False, True])
def test_intervals_of_points_lie_inside_the_axis(log):
    rows = pd.DataFrame({"kind": "measured", "center": [1.0, 1.1], "low": 0.1, "high": 9.0})
    low, high = limits_of(rows, log=log, whole=True)
    assert low < 0.1 and high > 9.0
    low, high = limits_of(rows, log=log)  # of curves over steps they may end outside
    assert low > 0.1 and high < 9.0
