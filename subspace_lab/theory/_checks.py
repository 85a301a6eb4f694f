"""Checks of arguments that many formulas share."""

from __future__ import annotations


def check_keep_prob(keep_prob: float) -> None:
    """Raise ValueError unless 0 < keep_prob <= 1."""
    if not 0 < keep_prob <= 1:
        raise ValueError(f"keep_prob must lie in (0, 1], not {keep_prob}")


def check_kept(kept: int, rank: int) -> None:
    """Raise ValueError unless 0 <= kept <= rank."""
    if not 0 <= kept <= rank:
        raise ValueError(f"kept must lie between 0 and rank = {rank}, not be {kept}")
