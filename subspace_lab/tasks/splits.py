"""Which split an example belongs to: decided by a hash of its prompt, so never by order or seed.

A prompt's bucket (0 to 99) is the same on every machine and in every release, and equal prompts
share a bucket. So a prompt that is held out for validation cannot appear in training, whatever
the sizes and seeds of the two. Sets with a test file of their own hold out 5 of the 100 buckets
for validation; generated tasks have no test file and hold out 20 more.
"""

from __future__ import annotations

import hashlib

from subspace_lab.errors import UserError

SPLITS = ("train", "validation", "train+validation", "test")

VALIDATION = range(0, 5)
GENERATED_TEST = range(80, 100)


def check_split(split: str) -> None:
    """Refuse a split that does not exist.

    Raises:
        UserError: if `split` is none of `SPLITS`.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")


def bucket(prompt: str) -> int:
    """Hash a prompt into one of 100 buckets.

    >>> bucket("What is 1 + 2?") == bucket("What is 1 + 2?")
    True
    """
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100


def in_training_split(prompt: str, split: str) -> bool:
    """Tell whether an example of a training file belongs to `split` (any but "test")."""
    if split == "train+validation":
        return True
    return (bucket(prompt) in VALIDATION) == (split == "validation")


def in_generated_split(prompt: str, split: str) -> bool:
    """Tell whether a generated example belongs to `split`."""
    if split == "test" or bucket(prompt) in GENERATED_TEST:
        return split == "test" and bucket(prompt) in GENERATED_TEST
    return in_training_split(prompt, split)
