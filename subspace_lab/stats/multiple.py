"""Several tests at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values (k,) of Holm (1979, Scand. J. Statist. 6(2)), in the order given.

    The i-th smallest is multiplied by k - i + 1, and none is below a smaller one's. Rejecting those
    below a level keeps the probability of any false rejection below that level, however the tests
    depend on each other.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort()
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    by_input = np.empty_like(p)
    by_input[order] = adjusted
    return by_input
