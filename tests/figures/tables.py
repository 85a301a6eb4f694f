"""Tables that figures are drawn from."""

from __future__ import annotations

import numpy as np
import pandas as pd


def make_table(runs: dict[str, str | None], *, steps: int = 5, modules: int = 7) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [list(runs), range(steps), [f"m{i}" for i in range(modules)]],
        names=["run", "step", "module"],
    )
    table = index.to_frame(index=False).assign(value=rng.normal(size=len(index)), expected=0.5)
    if all(runs.values()):
        table["configuration"] = table["run"].map(runs)
    return table
