"""When to record: predicates on the optimizer step.

A schedule is written as a string: a preset named by its cost (`full` every step, `light` every 10
steps, `minimal` about 8 steps per decade, `never`), `every:K`, `log:K` (K per decade), or an
explicit list such as `1,2,5,100`. Step 0 and the last step are always recorded, wherever training
stops, except with `never`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from subspace_lab.errors import UserError

Schedule = Callable[[int], bool]

PRESETS = {"full": "every:1", "light": "every:10", "minimal": "log:8"}


def every(k: int) -> Schedule:
    """Return the predicate that holds at each k-th step.

    >>> [step for step in range(1, 10) if every(3)(step)]
    [3, 6, 9]
    """
    return lambda step: step % k == 0


def logarithmic(per_decade: int) -> Schedule:
    """Return the predicate that holds at about `per_decade` steps per decade, evenly in log(step).

    >>> [step for step in range(1, 101) if logarithmic(3)(step)]
    [1, 2, 5, 10, 22, 46, 100]
    """

    def due(step: int) -> bool:
        nearest = round(per_decade * math.log10(step)) if step > 0 else -1
        # Rounding can move a step by one place, so its neighbors on the grid are tried as well.
        return any(round(10 ** (i / per_decade)) == step for i in range(nearest - 1, nearest + 2))

    return due


def at(steps: set[int]) -> Schedule:
    """Return the predicate that holds at the listed steps."""
    return lambda step: step in steps


def parse(text: str) -> Schedule:
    """Read a schedule from its string.

    >>> parse("every:5")(10), parse("1,2,4")(3), parse("full")(7)
    (True, False, True)

    Raises:
        UserError: if the string is none of the forms above.
    """
    text = PRESETS.get(text, text)
    if text == "never":
        return at(set())
    if periodic := re.fullmatch(r"(every|log):([0-9]*[1-9][0-9]*)", text):
        return (every if periodic[1] == "every" else logarithmic)(int(periodic[2]))
    if re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        return at({int(step) for step in text.split(",")})
    raise UserError(
        f"{text!r} is not a schedule: write full, light, minimal, never, every:K, log:K or a list "
        "of steps such as 1,2,5"
    )
