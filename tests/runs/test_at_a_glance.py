"""What a notebook shows of a run is short, and says what the run's files say."""

from __future__ import annotations

import pandas as pd
import pytest

from subspace_lab.recording.writer import RunWriter
from subspace_lab.runs.at_a_glance import mask_text, modules_text
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import mask_law


def test_a_recorded_run(run):
    shown = run._repr_html_()
    last = run.core_steps[-1]
    rank = run.modules["r"].iloc[0]
    facts = [
        "<td>by a script of its own</td>",
        "<td>finished</td>",
        f"keep_prob {run.mask_law.keep_prob}, one per step",
        f"{len(run.modules)} of rank {rank}",
        f"<th>cores</th><td>{len(run.core_steps)} steps, 0 to {last}</td>",
        f"<th>masks</th><td>{last} steps, 1 to {last}</td>",
        f"<th>snapshots</th><td>{len(run.snapshots)} steps",
    ]
    assert [fact for fact in facts if fact not in shown] == []
    assert len(shown) < 1000


def test_a_plain_adapter_folder(run):
    shown = Run(run.snapshots[run.final_step].path)._repr_html_()
    assert "<td>saved adapters</td>" in shown and "<th>rank masks</th><td>none</td>" in shown


def test_a_run_that_diverged_says_so(tmp_path):
    modules = pd.DataFrame(
        [("m", 0, "q", 2, 2, 1, 1.0)],
        columns=["module", "layer", "projection", "m", "n", "r", "scaling"],
    )
    writer = RunWriter(tmp_path / "run", {"diverged_at": 7}, modules)
    writer.close("interrupted")
    assert Run(tmp_path / "run").status == "interrupted, diverged at step 7"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"granularity": "token"}, "bernoulli, keep_prob 0.5, one per token, rescale keep_prob"),
        ({"rescale": "none"}, "bernoulli, keep_prob 0.5, one per step, not rescaled"),
        (
            {"dwell": 4},
            "bernoulli, keep_prob 0.5, one per step, rescale keep_prob, one draw serves 4 steps",
        ),
    ],
)
def test_a_mask_in_words(settings, text):
    assert mask_text(mask_law(0.5, **settings)) == text


def test_modules_of_several_ranks():
    modules = pd.DataFrame({"r": [4, 8, 2], "projection": ["q", "v", "q"], "layer": [0, 0, 1]})
    assert modules_text(modules) == "3 of ranks 2 to 8: q, v of 2 layers"
