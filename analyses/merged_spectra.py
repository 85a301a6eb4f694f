"""Singular values of the base, the merged weight and the update, and intruder dimensions.

    python -m analyses.merged_spectra --run runs/first
    python -m analyses.merged_spectra --run runs/first --steps every:1 --top-k 20
    python -m analyses.merged_spectra --run my-adapter --base meta-llama/Llama-2-7b-hf

For each module at the last saved adapter (or at --steps among the saved ones): the leading
singular values of the base weight W0, of the merged weight W0 + scaling B A, and all of the
update's, with ||update||_F / ||W0||_F.

Intruder dimensions are leading left singular vectors of the merged weight without a counterpart in
the base: their largest |cosine| with any left singular vector of W0 is below --epsilon
(Shuttleworth et al. 2024). Counted among the --top-k leading ones. For large weights only some base
vectors are computed; where they cannot settle the matter the vector counts as undecided.

The table also has what the same update does to a Gaussian base of the same norm (T18): each
singular value of the update above ||W0||_F / sqrt(m) (m / n)^(1/4) leaves the bulk as an outlier,
the others do not show. A trained base has leading directions of its own, and hides more.

A DoRA also scales the rows of W0 + scaling B A by its magnitudes: merged is that, and the norm is
of the whole update, but the rows `update` are of its low-rank part, scaling B A, alone.

The base's weights are read one by one; without them (no base named, or not available) only the
update's spectra are given, and so for a module whose weight the base lacks or stores in a way that
leaves a doubt; the output says so. A quantized base is named as such: its singular values are those
of the dequantized weights. A module with nan or infinities has nan for its numbers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses import kit
from subspace_lab import linalg, models
from subspace_lab.errors import UserError
from subspace_lab.figures.style import REFERENCE
from subspace_lab.linalg.dora import dora_whole_update
from subspace_lab.linalg.factors import Factors
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.runs.base_svd_cache import cached_base_svd
from subspace_lab.runs.base_weights import base_weight, find_base
from subspace_lab.runs.run import Run
from subspace_lab.theory.spiked_null import bulk_edge, spiked_singular_value

MATRICES = {matrix: matrix for matrix in ("update", "base", "merged")}
COLUMNS = (
    *("run", "step", "module", "layer", "projection", "matrix", "singular_values", "intruders"),
    *("undecided", "null_intruders", "null_singular_values", "update_to_base_norm", "remark"),
)
ALL_VECTORS_UP_TO = 1024  # a dense SVD takes a second up to here
SOME_VECTORS = 64
ROUNDING = 1e-12  # smaller singular values, relative to the largest, are not drawn


def compute(
    run: Run,
    *,
    steps: kit.Steps = None,
    modules: kit.Modules = None,
    top_k: int = 10,
    epsilon: float = 0.5,
    base: str | None = None,
) -> pd.DataFrame:
    """Compute the table of saved adapters: those of `steps` (None: the final one).

    Returns:
        A row is (run, step, module, matrix). Columns run, step, module, layer, projection, matrix
        (base, merged, update; only update without a base); singular_values (list, descending); of
        merged only, else nan or empty: intruders and undecided (of the top_k vectors),
        null_intruders and null_singular_values (outliers and spectrum of the same update on a
        Gaussian base; not for DoRA); update_to_base_norm (Frobenius; nan without a base); remark
        (on the base, or on the lack of it).

    Raises:
        UserError: if no adapters were saved, or `base` was asked for and is not available or has
            none of the modules' weights.
    """
    kit.check_needs(run, kit.Needs.SNAPSHOTS)
    if top_k < 1:
        raise UserError(f"--top-k must be at least 1, not {top_k}")
    if not 0 <= epsilon <= 1:
        raise UserError(f"--epsilon is a cosine, in [0, 1], and cannot be {epsilon}")
    chosen = [run.final_snapshot] if steps is None else sorted(steps)
    table = run.modules if modules is None else run.modules[run.modules["module"].isin(modules)]
    weights, remark = find_base(run, table["module"], name=base)

    def of_module(place: dict[Any, Any]) -> list[dict[str, Any]]:
        factors = {step: run.factors(step, place["module"]) for step in chosen}
        W0, reason = base_weight(weights, next(iter(factors.values())))
        spectrum = None if W0 is None else Base.of(W0, top_k=top_k)
        return [
            {"run": run.name, "step": step, **place, **row, "remark": reason or remark}
            for step, update in factors.items()
            for row in _rows(update, run.snapshots[step], spectrum, epsilon=epsilon)
        ]

    places = table[["module", "layer", "projection"]].to_dict("records")
    parts = kit.map_parallel(
        of_module, places, total=len(places), unit="module", description=run.name
    )
    labels = ["run", "module", "projection", "matrix", "remark"]
    rows = pd.DataFrame([row for part in parts for row in part], columns=COLUMNS)
    return rows.astype(dict.fromkeys(labels, "category"))


@dataclass(frozen=True)
class Base:
    """A base weight (m, n), its leading singular directions, and how many of them are tested."""

    weight: Tensor
    svd: linalg.LowRankSVD
    top_k: int

    @classmethod
    def of(cls, weight: Tensor, *, top_k: int) -> Base:
        """Factorize a weight: all of it where it is small, else the leading directions."""
        top_k = min(top_k, *weight.shape)
        if min(weight.shape) <= ALL_VECTORS_UP_TO:
            return cls(weight, linalg.base_svd(weight), top_k)
        rank, cache = max(SOME_VECTORS, top_k), models.cache_folder() / "base-svd"
        return cls(weight, cached_base_svd(weight, rank=rank, cache=cache), top_k)


def _rows(
    update: Factors, adapter: AdapterFolder, base: Base | None, *, epsilon: float
) -> list[dict[str, Any]]:
    """Make the rows of one module at one step: base, merged, update."""
    sigma = torch.full((update.rank,), torch.nan, dtype=torch.float64)
    if update.finite:
        sigma = linalg.singular_values(update.B, update.A, scaling=update.scaling)
    row = {"matrix": "update", "singular_values": sigma.numpy()}
    if base is None:
        return [row]
    leading, relative, dora = base.svd.S[: base.top_k], torch.nan, None
    if adapter.modules["variant"].str.contains("dora").any():
        dora = dora_whole_update(base.weight, update, adapter.magnitude(update.module))
    merged: dict[str, Any] = {"singular_values": torch.full_like(leading, torch.nan).numpy()}
    if update.finite and (dora is None or dora.row_scaling.isfinite().all()):
        whole = sigma if dora is None else dora.dense(base.weight)
        relative = float(whole.norm() / base.weight.double().norm())
        intruders = linalg.intruder_dimensions(
            base.weight,
            update.B,
            update.A,
            base=base.svd,
            top_k=base.top_k,
            epsilon=epsilon,
            scaling=update.scaling,
            row_scaling=None if dora is None else dora.row_scaling,
        )
        merged = {
            "singular_values": intruders.singular_values.numpy(),
            "intruders": float(intruders.intruder.sum()),
            "undecided": float(intruders.undecided.sum()),
            **({} if dora else _gaussian_null(sigma, base)),
        }
    rows = [{"matrix": "base", "singular_values": leading.numpy()}, {"matrix": "merged", **merged}]
    return [{**of_matrix, "update_to_base_norm": relative} for of_matrix in [*rows, row]]


def _gaussian_null(sigma: Tensor, base: Base) -> dict[str, Any]:
    """Give the leading singular values, and the outliers, of the update on a Gaussian base."""
    m, n = base.weight.shape
    noise_std = float(base.weight.double().norm()) / math.sqrt(m)
    strengths = sigma[: base.top_k].tolist()
    outliers = [spiked_singular_value(s, m=m, n=n, noise_std=noise_std) for s in strengths]
    bulk = [bulk_edge(m, n, noise_std=noise_std)] * (base.top_k - len(outliers))
    return {
        "null_singular_values": [spike.singular_value for spike in outliers] + bulk,
        "null_intruders": sum(spike.above_threshold for spike in outliers),
    }


def _spectra(table: pd.DataFrame) -> pd.DataFrame:
    """Make a row for each singular value of the last step, by its number in the spectrum."""
    table = kit.at_last_step(_complete(table))
    pairs = zip(table["singular_values"], table["null_singular_values"], strict=True)
    null = [[np.nan] * len(sigma) if np.ndim(null) == 0 else null for sigma, null in pairs]
    lists = ["singular_values", "null_singular_values"]
    values = table.assign(null_singular_values=pd.Series(null, table.index)).explode(lists)
    values = values.astype(dict.fromkeys(lists, float))
    spectrum = values.groupby(["run", "module", "matrix"], observed=True)["singular_values"]
    index, largest = spectrum.cumcount() + 1, spectrum.transform("max")
    return values.assign(index=index)[values["singular_values"] > ROUNDING * largest]


def _beside_bases(table: pd.DataFrame, *, matrix: str) -> pd.DataFrame:
    """Give a matrix's singular values, each with the base's and the excess over it, in %."""
    spectra = _spectra(table)
    place, names = ["run", "module", "index"], {"singular_values": "base"}
    bases = spectra.loc[spectra["matrix"] == "base", [*place, *names]].rename(columns=names)
    bases = bases.astype({"run": str, "module": str})
    both = spectra[spectra["matrix"] == matrix].merge(bases, on=place, how="left")
    return both.assign(change=100 * (both["singular_values"] / both["base"] - 1))


def _merged_at_last_step(table: pd.DataFrame) -> pd.DataFrame:
    return kit.at_last_step(_complete(table[table["matrix"] == "merged"]))


def _with_intruders(table: pd.DataFrame) -> pd.DataFrame:
    """Sum intruders over the modules of each projection; no rows where there are none at all."""
    merged = _merged_at_last_step(table)
    by = [*dict.fromkeys(["run", kit.group_column(table)]), "step", "projection"]
    sums = merged.groupby(by, observed=True, sort=False)[["intruders", "null_intruders"]]
    counts = sums.sum(min_count=1).reset_index()
    return counts if (counts["intruders"] > 0).any() else counts[:0]


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that tables of earlier versions lack, as nan."""
    return table.reindex(columns=list(dict.fromkeys([*table.columns, *COLUMNS])))


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give medians of the last step, the number of intruders, and remarks on the base."""
    summary: dict[str, dict[str, float] | str] = {}
    for run, last in kit.at_last_step(table).groupby("run", observed=True):
        update, merged = (last[last["matrix"] == matrix] for matrix in ("update", "merged"))
        counts = merged[["intruders", "undecided", "null_intruders"]].sum(min_count=1)
        summary[f"{run}, step {last['step'].iloc[0]}"] = {
            "largest singular value of the update": float(
                update["singular_values"].str[0].astype(float).median()
            ),
            "update to base norm": float(update["update_to_base_norm"].median()),
            "intruders": float(counts["intruders"]),
            "undecided": float(counts["undecided"]),
            "outliers of a Gaussian base": float(counts["null_intruders"]),
        }
        if remarks := list(filter(None, last["remark"].unique())):
            more = f" (and {len(remarks) - 3} more)" if len(remarks) > 3 else ""
            summary[f"{run}, base"] = "; ".join(remarks[:3]) + more
    return summary


by_projection = functools.partial(kit.Panel, over=None, by="projection")

plot = kit.curves_over_steps(
    kit.Panel(
        "singular_values",
        rows=functools.partial(_beside_bases, matrix="update"),
        over="index",
        title="singular values of the update",
        unit="σ",
        scale="log",
        expected="base",
        expected_label="base weight W₀",
        expected_style=REFERENCE,
    ),
    kit.Panel(
        "change",
        rows=functools.partial(_beside_bases, matrix="merged"),
        over="index",
        title="change of the weight's σᵢ",
        unit="%",
    ),
    by_projection(
        "update_to_base_norm",
        rows=_merged_at_last_step,
        title="size of the update",
        unit="‖ΔW‖ / ‖W₀‖",
        limits=(0, None),
    ),
    by_projection(
        "intruders",
        rows=_with_intruders,
        title="intruder dimensions, all modules",
        unit="vectors",
        limits=(0, None),
        expected="null_intruders",
        expected_label="Gaussian base (T18)",
    ),
    title="Merged spectra at the last step",
    panel_width=1.5,
)
modules = kit.module_map(
    "update_to_base_norm",
    title="Size of the update at the last step",
    unit="‖ΔW‖ / ‖W₀‖",
    rows=_merged_at_last_step,
)

ANALYSIS = kit.Analysis(
    name="merged_spectra",
    description=__doc__,
    question="what does the update do to the base weight?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS,
    compute=compute,
    plot={"merged_spectra": plot, "merged_spectra_modules": modules},
    summarize=summarize,
    reading="Singular values of the update beside those of the base weight; by how much the update "
    "changes the leading ones; its size relative to the weight; and, where there are any, "
    "<i>intruders</i>, leading singular vectors of the merged weight that resemble none of the "
    "base's.",
    options={
        "top_k": {"type": int, "default": 10, "metavar": "K", "help": "default: 10"},
        "epsilon": {"type": float, "default": 0.5, "metavar": "COSINE", "help": "default: 0.5"},
        "base": {"metavar": "MODEL", "help": "base model (default: the one that the run names)"},
    },
    position=60,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
