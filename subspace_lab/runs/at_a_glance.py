"""What a notebook shows of a run: how it was trained, what it adapts, and what is on disk."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from subspace_lab.theory.mask_law import MaskLaw


def facts_html(title: str, facts: Mapping[str, str]) -> str:
    """Write facts as a small HTML table under a title.

    >>> facts_html("a & b", {"modules": "20"})
    '<b>a &amp; b</b><table><tr><th>modules</th><td>20</td></tr></table>'
    """
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
        for name, text in facts.items()
    )
    return f"<b>{html.escape(title)}</b><table>{rows}</table>"


def training_text(config: Mapping[str, Any]) -> str:
    """Write the settings that tell most runs apart.

    >>> training_text({"method": "lora", "learning_rate": 0.001, "task": "flip", "seed": 0})
    'lora on flip, learning rate 0.001, seed 0'
    """
    if not {"method", "task", "learning_rate", "seed"} <= config.keys():
        return "by a script of its own"
    rate, seed = config["learning_rate"], config["seed"]
    return f"{config['method']} on {config['task']}, learning rate {rate:g}, seed {seed}"


def mask_text(law: MaskLaw | None) -> str:
    """Write a mask law: what is kept, how often it is drawn, and what kept directions become."""
    if law is None:
        return "none"
    kept = f"keep_prob {law.keep_prob:g}" if law.uses_keep_prob else "no keep_prob"
    rescale = "not rescaled" if law.rescale == "none" else f"rescale {law.rescale}"
    parts = (law.sampling, kept, f"one per {law.granularity}", rescale, law.dependence)
    return ", ".join(filter(None, parts))


def modules_text(modules: pd.DataFrame) -> str:
    """Write how many modules a module table has, of which ranks and projections."""
    ranks, projections = sorted(modules["r"].unique()), modules["projection"].unique()
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    layers = modules["layer"].nunique()
    return f"{len(modules)} of {rank}: {', '.join(projections)} of {layers} layers"


def steps_text(steps: Sequence[int]) -> str:
    """Write how many steps there are, and from where to where.

    >>> steps_text([0, 40, 200]), steps_text([7]), steps_text([])
    ('3 steps, 0 to 200', 'step 7', 'none')
    """
    if len(steps) < 2:
        return f"step {steps[0]}" if len(steps) else "none"
    return f"{len(steps)} steps, {steps[0]} to {steps[-1]}"
