"""Figures draw the numbers of their tables where they belong."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.design import read_design
from experiments.figures import draw_differences, draw_experiment, draw_ranks
from subspace_lab.figures.page import Page


def differences(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["regime", "arm", "at", "difference"])
    return table.assign(
        against="LoRA",
        outcome="test_calibrated_loss",
        low=table["difference"] - 0.1,
        high=table["difference"] + 0.1,
        pairs=10,
    )


def test_differences_stand_at_their_arms():
    rows = differences(
        ("A", "step", "own", -0.1), ("A", "token", "own", 0.2), ("B", "step", "equal", 0.3)
    )
    page = Page()
    draw_differences(rows, page)
    first, second = page.figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["step", "token"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first arm is uppermost
    points = first.lines[0].get_xydata()
    assert points == pytest.approx(pd.DataFrame([[-0.1, -0.17], [0.2, 0.83]]).to_numpy())
    assert second.lines[0].get_xydata() == pytest.approx(pd.DataFrame([[0.3, 0.17]]).to_numpy())
    (interval,) = second.collections[0].get_segments()
    assert interval[:, 0] == pytest.approx([0.2, 0.4])
    assert "10 paired seeds" in page.figure.get_suptitle()
    assert "numbers" not in page.figure.get_suptitle()


def test_a_difference_far_beyond_the_others_is_written_instead_of_drawn():
    near = [("A", arm, "own", 0.1) for arm in ("step", "token", "haar")]
    page = Page()
    draw_differences(
        differences(*near, ("A", "penalty", "own", -1.0), ("A", "penalty", "equal", -1.5)), page
    )
    (panel,) = page.figure.axes
    assert [text.get_text() for text in panel.texts] == ["← −1.00, −1.50"]
    assert panel.texts[0].xy == (0, 3)
    assert panel.get_xlim()[0] > -0.5
    assert "beyond the axis" in page.figure.get_suptitle()


def test_a_grid_draws_the_primary_arm_of_each_regime():
    design = read_design("x5")
    arm, regimes = design.primary[0][0], list(design.arms_of)[:3]
    rows = differences(
        *((regime, arm, "own", 0.1 * place) for place, regime in enumerate(regimes)),
        (regimes[0], "token-0.25", "own", 9.0),
        ("slope over A", arm, "own", 9.0),
    )
    page = Page(width=5.5)
    figure = draw_experiment(design, {"differences": rows}, page)["differences"]
    (panel,) = figure.axes
    assert figure.get_figwidth() == 5.5
    assert [text.get_text() for text in panel.get_yticklabels()] == regimes
    points = panel.lines[0].get_xydata()
    assert points == pytest.approx(pd.DataFrame([[0.0, 0], [0.1, 1], [0.2, 2]]).to_numpy())


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
    page = Page()
    draw_ranks(table, page)
    (panel,) = page.figure.axes
    drawn = [tuple(map(float, point)) for c in panel.containers for point in c[0].get_xydata()]
    assert sorted(drawn) == [(4.5, 1.17), (5.5, -0.17), (9.5, 0.83)]


@pytest.mark.parametrize(
    ("name", "kinds"), [("x7-short", {"ranks", "differences"}), ("x6", {"ranks"})]
)
def test_losses_are_drawn_beside_ranks_where_arms_have_rates_of_their_own(name, kinds):
    ranks = pd.DataFrame(
        {
            "regime": "noise",
            "arm": ["LoRA", "step"],
            "seed": 10,
            "runs": 1,
            "single_entropy": [5, 6],
        }
    )
    rows = differences(("noise", "step", "own", 0.1), ("noise", "step", "arm", -0.1))
    drawn = draw_experiment(read_design(name), {"ranks": ranks, "differences": rows}, Page())
    assert set(drawn) == kinds
    assert len({id(figure) for figure in drawn.values()}) == len(kinds)
    if "differences" in kinds:
        labels = drawn["differences"].legends[0].get_texts()
        assert [text.get_text() for text in labels] == [
            "each at its own rate",
            "at the arm's rate",
        ]
