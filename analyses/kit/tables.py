"""Tidy tables of millions of rows, built column by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pandas.api.types import union_categoricals

from subspace_lab.runs.core_batches import CoreBatch
from subspace_lab.runs.run import Run


def grid_table(
    run: Run,
    batch: CoreBatch,
    columns: Mapping[str, Any],
    *,
    axes: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Make a table from arrays over steps, modules and the given axes, a row for each entry.

    Args:
        run: its name becomes the column `run`.
        batch: the steps (T,) and modules (M,).
        columns: name of each column to its values, (T, M, *axes) or broadcastable to it; they
            follow run, step, module, layer, projection, and one for each axis.
        axes: further axes of the arrays: name of the column, and its labels along the axis.

    Raises:
        ValueError: if an array does not fit steps, modules and labels.
    """
    axes = axes or {}
    shape = (len(batch.steps), len(batch.modules), *map(len, axes.values()))
    places = [place.ravel() for place in np.indices(shape, dtype=np.int32)]

    def labelled(values: Sequence[str], codes: NDArray[np.int32]) -> Any:
        return pd.Categorical.from_codes(codes, categories=pd.Index(values))

    def of_modules(column: str) -> Any:
        known = list(dict.fromkeys(run.modules[column]))
        codes = np.array([known.index(value) for value in batch.modules[column]], dtype=np.int32)
        return labelled(known, codes[places[1]])

    table = {
        "run": labelled([run.name], np.zeros_like(places[0])),
        "step": batch.steps[places[0]],
        "module": of_modules("module"),
        "layer": batch.modules["layer"].to_numpy()[places[1]],
        "projection": of_modules("projection"),
    }
    for (name, labels), place in zip(axes.items(), places[2:], strict=True):
        table[name] = labelled(labels, place)
    for name, values in columns.items():
        table[name] = np.broadcast_to(np.asarray(values), shape).ravel()
    return pd.DataFrame(table)


def concatenate(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Stack tables; columns of labels stay categorical, with the union of their categories.

    A column that only some tables have is missing (nan) in the rows of the others.
    """
    parts = [table for table in tables if len(table)]
    names = dict.fromkeys(name for part in parts for name in part.columns)

    def column(name: str) -> Any:
        kind = next(part[name].dtype for part in parts if name in part)
        labels = isinstance(kind, pd.CategoricalDtype)
        filled = [
            part[name]
            if name in part
            else pd.Series(index=part.index, dtype=kind if labels else "float64")
            for part in parts
        ]
        return union_categoricals(filled) if labels else pd.concat(filled, ignore_index=True)

    return pd.DataFrame({name: column(name) for name in names})


def examples_note(table: pd.DataFrame, *, examples: str = "examples") -> str:
    """Say how many examples of which split were evaluated at most, such as "64 test examples".

    `examples` names the column of their numbers. Empty if none were. Tables of earlier versions
    lack the column `split`.
    """
    if examples not in table:
        return ""
    split = table["split"].fillna("held-out") if "split" in table else ["held-out"] * len(table)
    largest = table[examples].groupby(split, sort=False).max().dropna().astype(int)
    return ", ".join(f"{n} {split} example{'s' * (n != 1)}" for split, n in largest.items())


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of cells, the first of them the header, as a table in Markdown.

    >>> print(markdown_table([["a", "b"], ["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    header, *others = rows
    lines = [header, ["---"] * len(header), *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary_by(
    names: pd.Series[str], table: pd.DataFrame, **columns: str
) -> dict[str, dict[Any, Any]]:
    """Give a summary of a table's rows by name; `columns` are the table's by their names there.

    >>> summary_by(pd.Series(["step"]), pd.DataFrame({"difference": [-0.5]}), by="difference")
    {'step': {'by': -0.5}}
    """
    chosen = table[list(columns.values())].set_axis(list(columns), axis=1)
    return dict(zip(names, chosen.to_dict("records"), strict=True))


def ragged(values: ArrayLike) -> NDArray[np.object_]:
    """Turn an array (..., k) padded with nan into arrays of their own lengths, (...)."""
    padded = np.asarray(values)
    rows = padded.reshape(-1, padded.shape[-1])
    present = ~np.isnan(rows)
    flat, ends = rows[present], present.sum(1).cumsum()
    parts = (flat[start:end] for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True))
    return np.fromiter(parts, dtype=object, count=len(rows)).reshape(padded.shape[:-1])
