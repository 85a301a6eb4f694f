"""Stacked tables keep every column and every label, in whatever order the runs come."""

from __future__ import annotations

import itertools

import pandas as pd

from analyses.kit.tables import concatenate


def test_columns_that_only_some_tables_have_survive_in_any_order():
    plain = pd.DataFrame({"run": pd.Categorical(["a", "a"]), "loss": [1.0, 2.0]})
    more = pd.DataFrame(
        {
            "run": pd.Categorical(["b"]),
            "loss": [3.0],
            "rows": [4],
            "split": pd.Categorical(["test"]),
        }
    )
    for parts in itertools.permutations((plain, more, plain.iloc[:0])):
        table = concatenate(parts).set_index("run")
        assert table.loc["a", "loss"].tolist() == [1, 2] and table.loc["b", "rows"] == 4
        assert table.loc["a", ["rows", "split"]].isna().all(axis=None)
        assert table.index.dtype == "category" and table["split"].dtype == "category"
    assert concatenate([]).empty
