"""Points of runs, reduced over seeds."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from analyses import kit

POINTS = pd.DataFrame(
    {
        "run": ["b", "a", "b", "a", "b", "a"],
        "draw": [0.0, 0.0, 0.0, math.nan, 0.0, math.nan],
        "value": [1.0, 5.0, 2.0, 7.0, 6.0, 9.0],
        "low": [0.5, 4.0, 1.5, 6.0, 5.5, 8.0],
        "high": [1.5, 6.0, 2.5, 8.0, 6.5, 10.0],
        "note": ["first", "", "second", "", "third", ""],
        "larger": [True, True, True, False, False, False],
    }
)


def test_several_seeds_are_their_mean_and_one_keeps_its_ends():
    reduced = kit.over_seeds(POINTS, by=["run", "draw"])
    assert reduced["run"].tolist() == ["b", "a", "a"]
    assert reduced["seeds"].tolist() == [3, 1, 2]
    assert reduced["value"].tolist() == [3.0, 5.0, 8.0]
    three, two = (ttest_1samp(v, 0).confidence_interval(0.95) for v in ([1, 2, 6], [7, 9]))
    assert reduced[["low", "high"]].to_numpy().tolist() == [
        pytest.approx([three.low, three.high]),
        [4.0, 6.0],
        pytest.approx([two.low, two.high]),
    ]
    assert reduced["note"].tolist() == ["first", "", ""]
    assert reduced["larger"].tolist() == [False, True, False]


def test_no_points_are_no_points():
    reduced = kit.over_seeds(POINTS[:0], by=["run", "draw"])
    assert reduced.empty and "seeds" in reduced
