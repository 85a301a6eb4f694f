"""Do two adapters use the same directions? Normalized Grassmann overlap of leading directions.

    python -m analyses.grassmann --run runs/seed-0 --run runs/seed-1
    python -m analyses.grassmann --run runs/rank-8 runs/rank-64 --modules q_proj v_proj
    python -m analyses.grassmann --run runs/first --steps 10,100

Compares two adapters at their final step (or at --steps: one for both, or one for each), or one
adapter at two steps. For the i leading singular directions of the one and the j leading ones of
the other, with orthonormal U_i and V_j,

    phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j)

is 1 where one span contains the other and 0 where they are orthogonal (Hu et al. 2022, LoRA,
Section 7.2). Side row takes right singular directions, in input space; side column left ones, in
output space. Matrix update is scaling B A; matrix factor is A alone (row) or B alone (column).

Random directions in R^n have phi = max(i, j) / n on average: the null beside which to read phi.
Runs that start from one A share its directions without having learned them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses import kit
from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.figures.heat_map import draw_heat_map
from subspace_lab.linalg.factors import Factors
from subspace_lab.runs.run import Run

SIDES = {"row": "input side", "column": "output side"}
MATRICES = ("update", "factor")


def compute(
    run: Run,
    other: Run | None = None,
    *,
    steps: tuple[int, int] | None = None,
    modules: kit.Modules = None,
) -> pd.DataFrame:
    """Compare two adapters of saved `steps` (None: the final ones), of one run or of two.

    Returns:
        Columns run, step, other_run, other_step, module, layer, projection, matrix (update,
        factor), side (row, column), i, j, phi, null_phi. i and j go up to the numerical ranks; a
        matrix of zeros, as B at the start, has no rows; with nan or infinities phi is nan.

    Raises:
        UserError: if a run has no saved adapter of that step, or the two have no module in common.
    """
    other = other or run
    kit.check_needs(run, kit.Needs.SNAPSHOTS)
    kit.check_needs(other, kit.Needs.SNAPSHOTS)
    first, second = steps or (run.final_snapshot, other.final_snapshot)
    table = run.modules if modules is None else run.modules[run.modules["module"].isin(modules)]
    sizes = ["module", "m", "n"]
    table = table.merge(other.modules[sizes], on=sizes)
    if table.empty:
        raise UserError(f"{run.path} and {other.path} have no module of the same size in common")
    pair: dict[str, Any] = {
        "run": run.name,
        "step": first,
        "other_run": other.name,
        "other_step": second,
    }
    places = table[["module", "layer", "projection"]].to_dict("records")
    labels = ["run", "other_run", "module", "projection", "matrix", "side"]

    def of_module(place: dict[Any, Any]) -> pd.DataFrame:
        module = place["module"]
        overlaps = _overlaps(run.factors(first, module), other.factors(second, module))
        return overlaps.assign(**pair, **place).astype(dict.fromkeys(labels, "category"))

    both = f"{run.name}, {other.name}"
    overlaps = kit.concatenate(
        kit.map_parallel(of_module, places, total=len(places), unit="module", description=both)
    )
    if overlaps.empty:
        raise UserError(f"the update of {run.path} or {other.path} is zero at that step")
    return overlaps[[*pair, *places[0], "matrix", "side", "i", "j", "phi", "null_phi"]]


def compare(
    runs: Sequence[Run], *, steps: str | None = None, modules: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compute the table of two runs, or of one run at two steps, named as on the command line.

    Raises:
        UserError: if there are more than two runs, or not two different adapters.
    """
    if len(runs) > 2:
        raise UserError(f"grassmann compares two adapters, not {len(runs)}: name two with --run")
    chosen = kit.select_modules(runs[0], modules)
    return compute(runs[0], runs[-1], steps=_select_pair(runs, steps), modules=chosen)


def _select_pair(runs: Sequence[Run], steps: str | None) -> tuple[int, int] | None:
    """Read --steps: one saved step for each of the two adapters; None: the final ones."""
    first, *others = runs
    if steps is None and others:
        return None
    texts = (steps or "last").split(",")
    if not others and len(texts) != 2:
        raise UserError("one run is compared at two saved steps: choose --steps such as 10,100")
    if len(texts) > 2:
        raise UserError(f"--steps {steps} are more than two steps: choose one or two")
    chosen = []
    for run, text in zip((first, runs[-1]), (texts[0], texts[-1]), strict=True):
        selected = kit.select_steps(run, sorted(run.snapshots), text) or []
        if len(selected) != 1:
            raise UserError(f"--steps {text} is not a single step of {run.path}")
        chosen += selected
    if not others and chosen[0] == chosen[1]:
        raise UserError(f"{first.path} would be compared with itself: choose two different --steps")
    return chosen[0], chosen[1]


def _overlaps(first: Factors, second: Factors) -> pd.DataFrame:
    """Overlap of all leading directions of one module."""
    parts = []
    directions = zip(_directions(first), _directions(second), strict=True)
    for (matrix, side, U), (_, _, V) in directions:
        phi = np.full((U.shape[1], V.shape[1]), np.nan)
        if U.isfinite().all() and V.isfinite().all():
            phi = linalg.grassmann_overlap(U, V).numpy()
        i, j = np.indices(phi.shape, dtype=np.int16) + 1
        columns = {"matrix": matrix, "side": side, "i": i.ravel(), "j": j.ravel()}
        null = np.maximum(i, j).ravel() / U.shape[0]
        parts.append(pd.DataFrame(columns | {"phi": phi.ravel(), "null_phi": null}))
    return pd.concat(parts, ignore_index=True)


def _directions(factors: Factors) -> list[tuple[str, str, torch.Tensor]]:
    """Singular directions as orthonormal columns, descending, up to the numerical rank.

    They are nan, r of them, where the factors are not finite.
    """
    sides = {"row": factors.A.T.double(), "column": factors.B.double()}
    if not factors.finite:
        unknown = {side: torch.full_like(X, torch.nan) for side, X in sides.items()}
        return [(matrix, side, X) for matrix in MATRICES for side, X in unknown.items()]
    update = linalg.singular_vectors(factors.B, factors.A, scaling=factors.scaling)
    rank = int(update.numerical_rank)
    directions = [("update", "row", update.Vh[:rank].T), ("update", "column", update.U[:, :rank])]
    for side, X in sides.items():
        U, S, _ = torch.linalg.svd(X, full_matrices=False)
        rank = int((linalg.RANK_TOLERANCE * S[0] < S).sum())
        directions.append(("factor", side, U[:, :rank]))
    return directions


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Give the means over modules of phi and of its null, with the number of modules."""
    by = ["run", "step", "other_run", "other_step", "matrix", "side", "i", "j"]
    values = {name: (name, "mean") for name in ("phi", "null_phi")}
    groups = table.groupby(by, observed=True)
    return groups.agg(**values, modules=("module", "nunique")).reset_index()


def draw(means: pd.DataFrame, page: kit.Page) -> None:
    """Draw phi(i, j), the mean over modules, as heat maps by matrix and side."""
    first = means.iloc[0]
    names = ("ΔW", "ΔW", "A", "B")
    places = zip(names, itertools.product(MATRICES, SIDES), strict=True)
    panels = {f"{name}, {SIDES[side]}": (matrix, side) for name, (matrix, side) in places}
    axes = page.panels(list(panels), row_height=1.7, panel_width=1.5)
    for title, axis in axes.items():
        matrix, side = panels[title]
        rows = means[(means["matrix"] == matrix) & (means["side"] == side)]
        axis.set(xlabel="j", ylabel="i")
        if rows.empty:
            axis.set(title=title, xticks=[], yticks=[])
            axis.text(0.5, 0.5, "zero", ha="center", transform=axis.transAxes)
            continue
        image = draw_heat_map(axis, rows.pivot(index="i", columns="j", values="phi"))
        axis.set_title(f"{title}\nrandom: ≤ {rows['null_phi'].max():.2g}")
    shown = list(axes.values())
    page.figure.colorbar(image, ax=shown, label="overlap φ(i, j)", shrink=0.7, aspect=30)
    page.title(
        f"i: {first['run']}, step {first['step']};  j: {first['other_run']}, step "
        f"{first['other_step']}\nmean over {means['modules'].max()} modules"
    )


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the overlap of the first directions and of all of them, beside the null."""
    summary = {}
    for matrix, side in itertools.product(MATRICES, SIDES):
        rows = table[(table["matrix"] == matrix) & (table["side"] == side)]
        largest = rows.groupby("module", observed=True)[["i", "j"]].transform("max")
        whole = rows[(rows["i"] == largest["i"]) & (rows["j"] == largest["j"])]
        leading = rows[(rows["i"] == 1) & (rows["j"] == 1)]
        summary[f"{matrix}, {SIDES[side]}"] = {
            "first directions": float(leading["phi"].mean()),
            "random": float(leading["null_phi"].mean()),
            "whole spaces": float(whole["phi"].mean()),
            "random spaces": float(whole["null_phi"].mean()),
        }
    return summary


plot = kit.Plot(draw, means)

ANALYSIS = kit.Analysis(
    name="grassmann",
    description=__doc__,
    question="do two adapters share directions (LoRA paper, section 7)?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS,
    compute=compare,
    plot=plot,
    summarize=summarize,
    compares=True,
    position=65,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
