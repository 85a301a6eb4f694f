"""Gates that a caller chooses in place of the law's: checked, and set on the hooks of a mask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor

from subspace_lab.adapters.mask_hook import MaskHook
from subspace_lab.errors import UserError


def check_gates(
    gates: Mapping[str, Tensor], ranks: Mapping[str, int], *, diagonal: bool = True
) -> None:
    """Check that there are gates (r,) or (K, r) of each masked module, and of no other.

    Where the law's gates are matrices (`diagonal` is false), (r, r) or (K, r, r).

    Raises:
        UserError: if not.
    """
    if gates.keys() != ranks.keys():
        differing = sorted(gates.keys() ^ ranks.keys())
        raise UserError(f"gates must cover the masked modules; differ: {differing[:3]}")
    for name, rank in ranks.items():
        shape, one = tuple(gates[name].shape), (rank,) if diagonal else (rank, rank)
        if len(shape) - len(one) not in (0, 1) or shape[-len(one) :] != one:
            several = ", ".join(map(str, ("K", *one)))
            raise UserError(f"gates of {name} must be {one} or ({several}), not {shape}")


@contextlib.contextmanager
def chosen_on(
    hooks: Mapping[str, MaskHook],
    gates: Mapping[str, Tensor],
    *,
    mode: Literal["training", "evaluation"],
) -> Iterator[None]:
    """Set gates on the hooks, by module name, for one mode of the model."""
    name = "chosen" if mode == "training" else "in_evaluation"
    for module, hook in hooks.items():
        setattr(hook, name, gates[module])
    try:
        yield
    finally:
        for hook in hooks.values():
            setattr(hook, name, None)
