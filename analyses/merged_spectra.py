"""Singular values of the base, the merged weight and the update, and intruder dimensions.

    python -m analyses.merged_spectra --run runs/first
    python -m analyses.merged_spectra --run runs/first --steps every:1 --top-k 20
    python -m analyses.merged_spectra --run my-adapter --base meta-llama/Llama-2-7b-hf

For each module at the last saved adapter (or at --steps among the saved ones): the leading
singular values of the base weight W0, of the merged weight W0 + scaling B A, and all of the
update's, with ||update||_F / ||W0||_F.

Intruder dimensions are leading left singular vectors of the merged weight that the base has not:
their largest |cosine| with any left singular vector of W0 is below --epsilon (Shuttleworth et al.
2024). Counted among the --top-k leading ones. For large weights only some base vectors are
computed; where they cannot settle the matter the vector counts as undecided.

A DoRA also scales the rows of W0 + scaling B A by its magnitudes: merged is that, and the norm is
of the whole update, but the rows `update` are of its low-rank part, scaling B A, alone.

The base's weights are read one by one; without them (no base named, or not available) only the
update's spectra are given, and so for a module whose weight the base lacks or stores in a way that
leaves a doubt; the output says so. A quantised base is named as such: its singular values are those
of the dequantised weights. A module with nan or infinities has nan for its numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analyses import kit
from analyses._base_weights import BaseWeights, UnreadableWeightError, open_base
from subspace_lab import linalg, models
from subspace_lab.errors import UserError
from subspace_lab.figures.categories import draw_by_category
from subspace_lab.figures.curves import draw_curves, draw_names, looks, sample_note
from subspace_lab.figures.style import legend_below, new_figure
from subspace_lab.linalg.dora import DoraUpdate, dora_whole_update
from subspace_lab.linalg.factors import Factors
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.runs.base_svd_cache import cached_base_svd
from subspace_lab.runs.run import Run

MATRICES = ("update", "base", "merged")  # the first, which no run lacks, carries its label
ALL_VECTORS_UP_TO = 1024  # a dense SVD takes a second up to here
SOME_VECTORS = 64
ROUNDING = 1e-12  # smaller singular values, relative to the largest, are not drawn


def compute(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
    top_k: int = 10,
    epsilon: float = 0.5,
    base: str | None = None,
) -> pd.DataFrame:
    """Compute the table; a row is (run, step, module, matrix).

    Args:
        run: a run with saved adapters.
        steps: only these of the saved ones; None: the final one.
        modules: only these modules; None: all.
        top_k: how many singular values of base and merged weight, and vectors tested.
        epsilon: cosine below which a vector is an intruder.
        base: the base model; None: the one that the run names.

    Returns:
        Columns run, step, module, layer, projection, matrix (base, merged, update; only update
        without a base); singular_values (list, descending); intruders and undecided (of the top_k
        vectors; merged only, else nan); update_to_base_norm (Frobenius; nan without a base);
        remark (on the base, or on the lack of it).

    Raises:
        UserError: if no adapters were saved, or `base` was asked for and cannot be had or has none
            of the modules' weights.
    """
    kit.check_needs(run, kit.Needs.SNAPSHOTS)
    if top_k < 1:
        raise UserError(f"--top-k must be at least 1, not {top_k}")
    if not 0 <= epsilon <= 1:
        raise UserError(f"--epsilon is a cosine, in [0, 1], and cannot be {epsilon}")
    chosen = [run.final_snapshot] if steps is None else sorted(steps)
    table = run.modules if modules is None else run.modules[run.modules["module"].isin(modules)]
    names = list(table["module"])
    weights, remark = _find_base(run, base, names)

    def of_module(module: str) -> list[dict[str, Any]]:
        factors = {step: run.factors(step, module) for step in chosen}
        W0, said = _weight(weights, next(iter(factors.values())), remark)
        rows = _rows(run, factors, W0, top_k=top_k, epsilon=epsilon)
        return [{**row, "remark": said} for row in rows]

    found = kit.map_parallel(
        of_module, names, total=len(names), unit="module", description=run.name
    )
    places = table[["module", "layer", "projection"]].to_dict(orient="records")
    rows = [
        {"run": run.name, **place, **row}
        for place, of_one in zip(places, found, strict=True)
        for row in of_one
    ]
    labels = ["run", "module", "projection", "matrix", "remark"]
    return pd.DataFrame(rows).astype(dict.fromkeys(labels, "category"))


def _find_base(run: Run, name: str | None, modules: list[str]) -> tuple[BaseWeights | None, str]:
    """Open the base if it is available; give what has to be said about it."""
    try:
        weights = open_base(run, name=name)
        codes, reasons = set[str](), list[UserError]()
        for module in modules:
            try:
                codes.add(weights.codes(module) or "")
            except UnreadableWeightError as error:
                reasons.append(error)
        if not codes:
            raise UserError(
                f"the base has none of the modules' weights that can be read: {reasons[0]}"
            )
    except UserError as error:
        if name:
            raise
        return None, f"update only: {error}"
    dequantized = ", ".join(sorted(codes - {""}))
    remarks = [weights.remark, f"dequantized from {dequantized} codes" if dequantized else ""]
    return weights, "; ".join(filter(None, remarks))


def _weight(
    weights: BaseWeights | None, factors: Factors, remark: str
) -> tuple[Tensor | None, str]:
    """Read the weight that factors update; give what has to be said about it, or its lack."""
    if weights is None:
        return None, remark
    try:
        return weights.matrix(factors), remark
    except UnreadableWeightError as error:
        return None, f"update only: {error}"


def _rows(
    run: Run, factors: dict[int, Factors], W0: Tensor | None, *, top_k: int, epsilon: float
) -> list[dict[str, Any]]:
    """Rows of one module at all steps."""
    nan = float("nan")
    rows: list[dict[str, Any]] = []
    if W0 is not None:
        top_k = min(top_k, *W0.shape)
        small = min(W0.shape) <= ALL_VECTORS_UP_TO
        cache = models.cache_folder() / "base-svd"
        svd = (
            linalg.base_svd(W0)
            if small
            else cached_base_svd(W0, rank=max(SOME_VECTORS, top_k), cache=cache)
        )
    for step, f in factors.items():
        counts, relative = {"intruders": nan, "undecided": nan}, nan
        sigma = {"update": torch.full((f.rank,), nan, dtype=torch.float64)}
        if f.finite:
            sigma = {"update": linalg.singular_values(f.B, f.A, scaling=f.scaling)}
        if W0 is not None:
            sigma |= {"base": svd.S[:top_k], "merged": torch.full_like(svd.S[:top_k], nan)}
        dora = None if W0 is None else _dora(run.snapshots[step], f, W0)
        if W0 is not None and f.finite and (dora is None or dora.row_scaling.isfinite().all()):
            update = sigma["update"] if dora is None else dora.dense(W0)
            relative = float(update.norm() / W0.double().norm())
            found = linalg.intruder_dimensions(
                W0,
                f.B,
                f.A,
                base=svd,
                top_k=top_k,
                epsilon=epsilon,
                scaling=f.scaling,
                row_scaling=None if dora is None else dora.row_scaling,
            )
            counts = {
                "intruders": float(found.intruder.sum()),
                "undecided": float(found.undecided.sum()),
            }
            sigma["merged"] = found.singular_values
        rows += [
            {
                "step": step,
                "matrix": matrix,
                "singular_values": sigma[matrix].numpy(),
                **(counts if matrix == "merged" else dict.fromkeys(counts, nan)),
                "update_to_base_norm": relative,
            }
            for matrix in ("base", "merged", "update")
            if matrix in sigma
        ]
    return rows


def _dora(adapter: AdapterFolder, factors: Factors, W0: Tensor) -> DoraUpdate | None:
    """Give the whole update where the adapter is a DoRA."""
    if not adapter.modules["variant"].str.contains("dora").any():
        return None
    return dora_whole_update(W0, factors, adapter.magnitude(factors.module))


def draw(table: pd.DataFrame) -> Figure:
    """Draw the spectra at each run's last step, and by projection the norms and intruders."""
    last = table[table["step"] == table.groupby("run", observed=True)["step"].transform("max")]
    shown = {matrix: matrix for matrix in MATRICES if (last["matrix"] == matrix).any()}
    look = looks(last, shown)
    with_base = "merged" in shown
    figure, axes = new_figure(3 if with_base else 1, row_height=1.5, share_x=False)
    spectra = axes[0, 0]
    values = last.explode("singular_values").astype({"singular_values": float})
    values["step"] = values.groupby(["run", "module", "matrix"], observed=True).cumcount() + 1
    largest = values.groupby(["run", "module", "matrix"], observed=True)["singular_values"]
    values = values[values["singular_values"] > ROUNDING * largest.transform("max")]
    for matrix in shown:
        rows = values[values["matrix"] == matrix]
        draw_curves(spectra, rows, "singular_values", name=matrix, looks=look)
    draw_names(spectra, last, shown)
    spectra.set(title="leading singular values", xlabel="index", ylabel="σ", yscale="log")
    if with_base:
        merged = last[last["matrix"] == "merged"]
        count = merged["singular_values"].map(len).max()
        norm, intruders = axes[1:, 0]
        draw_by_category(norm, merged, "update_to_base_norm", category="projection")
        norm.set(
            title="size of the update (median, quartiles)", ylabel="‖ΔW‖ / ‖W₀‖", ylim=(0, None)
        )
        draw_by_category(intruders, merged, "intruders", category="projection")
        intruders.set(title="intruder dimensions (median, quartiles)")
        intruders.set(ylabel=f"of the top {count}", ylim=(-0.2, max(2.0, intruders.get_ylim()[1])))
    steps = "+".join(map(str, sorted(last["step"].unique())))
    figure.suptitle(f"Merged spectra at step {steps}\n{sample_note(last)}", fontsize="medium")
    legend_below(figure, spectra, columns=3 if last["run"].nunique() == 1 else 2)
    return figure


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give medians of the last step, the number of intruders, and remarks on the base."""
    found: dict[str, dict[str, float] | str] = {}
    for run, rows in table.groupby("run", observed=True):
        last = rows[rows["step"] == rows["step"].max()]
        update, merged = (last[last["matrix"] == matrix] for matrix in ("update", "merged"))
        found[f"{run}, step {last['step'].iloc[0]}"] = {
            "largest singular value of the update": float(
                update["singular_values"].str[0].median()
            ),
            "update to base norm": float(update["update_to_base_norm"].median()),
            "intruders": float(merged["intruders"].sum(min_count=1)),
            "undecided": float(merged["undecided"].sum(min_count=1)),
        }
        if remarks := list(filter(None, last["remark"].unique())):
            more = f" (and {len(remarks) - 3} more)" if len(remarks) > 3 else ""
            found[f"{run}, base"] = "; ".join(remarks[:3]) + more
    return found


plot = kit.Plot(draw)

ANALYSIS = kit.Analysis(
    name="merged_spectra",
    description=__doc__,
    question="what does the update do to the base weight?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS,
    compute=compute,
    plot=plot,
    summarize=summarize,
    reading="Singular values of the base weight, the update, and their sum; the size of the update "
    "relative to the weight; and <i>intruders</i>, leading singular vectors of the merged "
    "weight that resemble none of the base's.",
    options={
        "top_k": {"type": int, "default": 10, "metavar": "K", "help": "default: 10"},
        "epsilon": {"type": float, "default": 0.5, "metavar": "COSINE", "help": "default: 0.5"},
        "base": {"metavar": "MODEL", "help": "base model (default: the one that the run names)"},
    },
    position=60,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
