"""What a caption says of the numbers: the data, the sample sizes, and what the intervals are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analyses import kit
from subspace_lab.runs.run import Run

SETTINGS = ("base", "task", "steps")


def data_of(runs: Sequence[Run], names: Mapping[str, str]) -> str:
    """Name methods with their learning rates and seeds, and what the runs share."""
    counts = pd.Series([names[run.name] for run in runs], dtype=str).value_counts(sort=False)
    rates: dict[tuple[str, int], list[str]] = {}
    for name, count in counts.items():
        method, at, rate = str(name).rpartition(" at ")
        rates.setdefault((method + at, int(count)), []).append(rate)
    texts = [
        f"{method}{', '.join(of_method)} ({count} seed{'s' * (count != 1)}"
        f"{' each' * (len(of_method) > 1)})"
        for (method, count), of_method in rates.items()
    ]
    shared = []
    for setting in SETTINGS:
        values = {run.config.get(setting) for run in runs}
        if len(values) == 1 and (value := values.pop()) is not None:
            shared.append(f"{value} steps" if setting == "steps" else f"{setting} {value}")
    return "; ".join(filter(None, [", ".join(texts), ", ".join(shared)]))


def of_curves(shown: pd.DataFrame) -> tuple[str, str]:
    """Give the sample size and the interval of curves over modules and seeds."""
    measured = shown[shown["kind"] == "measured"]
    modules, seeds = int(measured["modules"].max()), measured.groupby("group")["runs"].max()
    parts = [f"median over {modules} module{'s' * (modules != 1)}" if modules else ""]
    if (seeds > 1).any():
        parts.append(f"mean over {_range(seeds)} seeds")
    bands = [band for band in dict.fromkeys(shown["band"]) if band]
    return ", ".join(filter(None, parts)), " and ".join(bands) or "none"


def of_points(shown: pd.DataFrame) -> tuple[str, str]:
    """Give the sample size and the interval of what whole models scored."""
    seeds = shown["seeds"]
    masks = f"{int(shown['masks'].max())} masks, computed in {shown['dtype'].iloc[0]}"
    own = "95 % over masks" if "quantity" in shown else "95 % (Wilson) of exact match"
    interval = "95 % t interval over seeds" if (seeds > 1).any() else own
    of_seeds = f", mean over {_range(seeds[seeds > 1])} seeds" if (seeds > 1).any() else ""
    return f"{kit.examples_note(shown)}, {masks}{of_seeds}", interval


def of_layers(shown: pd.DataFrame) -> tuple[str, str]:
    """Give the sample size of a map of layers."""
    n = f"median over up to {int(shown['modules'].max())} modules of a layer"
    seeds = shown["seeds"]
    return n + (f", mean over {_range(seeds)} seeds" if (seeds > 1).any() else ""), "none"


def of_overlaps(shown: pd.DataFrame) -> tuple[str, str]:
    """Give the sample size of overlaps between seeds."""
    modules, pairs = int(shown["modules"].max()), _range(shown["pairs"])
    null = f"random directions would have at most {shown['null_phi'].max():.2g}"
    return f"mean over {modules} modules and {pairs} pairs of seeds ({null})", "none"


def of_scores(shown: pd.DataFrame) -> tuple[str, str]:
    """Give the sample size and the interval of scores on test examples."""
    known = shown["seeds"].dropna()
    examples = int(shown["examples"].min())
    return f"{_range(known)} seeds, {examples} test examples", "95 % t interval over seeds"


def _range(counts: pd.Series[int]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"
