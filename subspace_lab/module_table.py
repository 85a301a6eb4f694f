"""The module table of a run or an adapter: one row per adapted module, with the sizes of dW."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from subspace_lab.module_names import layer_and_projection

MODULE_COLUMNS = ["module", "layer", "projection", "m", "n", "r", "scaling"]


def module_table(modules: Iterable[tuple[str, int, int, int, float]]) -> pd.DataFrame:
    """Make the table of modules (name, m, n, r, scaling), each dW = scaling * B A being (m, n).

    >>> int(module_table([("layers.3.q_proj", 64, 64, 8, 2.0)]).loc[0, "layer"])
    3
    """
    rows = [(name, *layer_and_projection(name), *sizes) for name, *sizes in modules]
    return pd.DataFrame(rows, columns=MODULE_COLUMNS)
