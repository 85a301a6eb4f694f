"""Figures of given numbers, as listings of what they show.

After a wanted change, `python -m tests.figures.listing` writes the listings anew.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analyses import grassmann, kit, mask_theory
from analyses.gate_expansion.figure import SAMPLES
from analyses.gate_expansion.figure import draw as draw_gates
from analyses.gate_expansion.figure import figure_table as gate_points
from tests.figures.listing import BASELINES, drawn, listing

KINDS = {"u": "update", "m": "masked update"}
PANELS = (
    kit.Panel("value", by="kind", labels=KINDS, expected="expected", title="ranks", unit="1"),
    kit.Panel("value", by="projection", over=None, title="at the end", rows=kit.at_last_step),
    kit.Panel("positive", title="lengths", scale="log", expected="low",
              expected_band=("low", "high")),
)  # fmt: skip


def waves(runs: dict[str, str | None], *, steps: int = 15) -> pd.DataFrame:
    """Make a table of two layers with two projections, whose numbers are waves."""
    axes = [list(runs), range(steps), [0, 1], ["q", "v"], list(KINDS)]
    names = ["run", "step", "layer", "projection", "kind"]
    table = pd.MultiIndex.from_product(axes, names=names).to_frame(index=False)
    phase = table["run"].map(list(runs).index) + 0.3 * table["layer"] + (table["kind"] == "m")
    value = 2 + np.sin(table["step"] / 3 + phase + (table["projection"] == "q"))
    module = table["layer"].astype(str) + "." + table["projection"]
    table = table.assign(module=module, value=value, positive=np.exp(-value), expected=2.0)
    if all(runs.values()):
        table["configuration"] = table["run"].map(runs)
    return table.assign(low=0.1, high=0.3)


def curves(
    runs: dict[str, str | None], by: str | None = None, **page: object
) -> Callable[[], Figure]:
    def make() -> Figure:
        return drawn(kit.curves_of(PANELS, waves(runs), by=by), *PANELS, **page)

    return make


def modules() -> Figure:
    plot = kit.module_map(
        "value", title="T", unit="1", rows=lambda table: table[table["kind"] == "u"]
    )
    return plot(waves({"a": None, "b": None}))


def gates() -> Figure:
    values = {"measured": [0.1, 0.3], "second": [0.2, 0.2], "trustworthy": [True, False]}
    table = pd.DataFrame({"run": "a", "step": [0, 10], "examples": 9, **values})
    table = table.assign(measured_error=0.05, second_error=0.1, **dict.fromkeys(SAMPLES[4:], "x"))
    table = table.assign(granularity="step", keep_prob=0.5, assumed=False, examples=9, masks=3)
    return kit.Plot(draw_gates, gate_points)(table)


def overlaps() -> Figure:
    i, j = np.indices((2, 2)) + 1
    rows = [
        {"matrix": m, "side": s, "i": a, "j": b, "phi": 1 / (a + b), "null_phi": 0.1 * max(a, b)}
        for m in grassmann.MATRICES[:1]
        for s in grassmann.SIDES
        for a, b in zip(i.ravel(), j.ravel(), strict=True)
    ]
    pair = {"run": "a", "step": 1, "other_run": "b", "other_step": 2, "module": "m"}
    return grassmann.plot(pd.DataFrame(rows).assign(**pair))


def predictions() -> Figure:
    rows = pd.DataFrame(
        [
            ("a", "mean kept", "T1", "sampling", 1.0, 1.05, 0.1, True),
            ("b", "mean kept", "T1", "sampling", 1.0, 1.5, 0.1, False),
            ("b", "balance", "T13", "indicative", 1.0, 0.9, 0.2, None),
        ],
        columns=["run", "prediction", "statement", "kind", "predicted", "measured", "tolerance",
                 "agrees"],
    )  # fmt: skip
    given = {"tests": "training", "power": 0.1, "repeats": False, "where": ""}
    return mask_theory.ANALYSIS.plot(rows.astype({"agrees": "boolean"}).assign(**given))


FIGURES: dict[str, Callable[[], Figure]] = {
    "one-run": curves({"a": None}),
    "three-runs": curves({"a": None, "b": None, "c": None}),
    "seeds": curves({"a1": "a", "a2": "a", "b": "b"}),
    "projections": curves({"a": None, "b": None}, by="projection"),
    "two-columns-untitled": curves({"a": None}, width=6.3, titled=False, things=("z", "a")),
    "modules": modules,
    "gates": gates,
    "overlaps": overlaps,
    "predictions": predictions,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_what_it_showed(name):
    found = listing(FIGURES[name]()).splitlines()
    assert found == (BASELINES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
