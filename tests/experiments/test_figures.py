"""Figures draw the numbers of their tables where they belong."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.figures import draw_differences, draw_ranks


def test_differences_stand_at_their_arms():
    rows = pd.DataFrame(
        {
            "regime": ["A", "A", "B"],
            "arm": ["step", "token", "step"],
            "against": "LoRA",
            "at": ["own", "own", "equal"],
            "difference": [-0.1, 0.2, 0.3],
            "low": [-0.2, 0.1, 0.1],
            "high": [0.0, 0.3, 0.5],
            "pairs": 10,
        }
    )
    figure = draw_differences(rows, title="loss", unit="nats")
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["token", "step"]
    points = first.lines[0].get_xydata()
    assert points == pytest.approx(pd.DataFrame([[-0.1, 1.12], [0.2, 0.12]]).to_numpy())
    assert second.lines[0].get_xydata() == pytest.approx(pd.DataFrame([[0.3, 0.88]]).to_numpy())
    assert "10 paired seeds" in figure.get_suptitle()


def test_ranks_of_means_are_drawn_only_where_runs_differ_in_their_masks():
    table = pd.DataFrame(
        {
            "regime": "A",
            "arm": ["LoRA"] * 2 + ["step"] * 2,
            "seed": [20, 21] * 2,
            "runs": [1, 1, 8, 8],
            "single_entropy": [5.0, 6.0, 9.0, 10.0],
            "mean_entropy": [5.0, 6.0, 4.0, 5.0],
        }
    )
    (panel,) = draw_ranks(table).axes
    drawn = [(float(c[0].get_xdata()[0]), c[0].get_ydata()[0]) for c in panel.containers]
    assert sorted(drawn) == [(4.5, 0), (5.5, 1), (9.5, 0)]
