"""Tasks: rows with their prompt applied, and a scorer for what a model writes.

    from subspace_lab import tasks

    rows = tasks.load("demo", "train", size=640, seed=0)
    tasks.score(rows[0], " 42")

`names()` lists the tasks. Splits are "train", "validation" (held out of the training rows by a
hash of the prompt), "train+validation" (every training row) and "test".
"""

from __future__ import annotations

from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.tasks import builtin
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.noise import with_label_noise
from subspace_lab.tasks.splits import check_split

__all__ = ["Example", "load", "names", "score"]


def names() -> tuple[str, ...]:
    """List the names that `load` knows."""
    return builtin.NAMES


def load(
    name: str,
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    label_noise: float = 0.0,
    difficulty: str = "easy",
) -> list[Example]:
    """Load or generate the rows of a task.

    Args:
        name: one of `names()`.
        split: "train", "validation", "train+validation" or "test".
        size: at most this many rows, drawn by `seed` (None: all, or the built-in default).
        seed: the drawn rows of a set, the generated rows of a built-in task, and the label noise.
        data_dir: folder with `commonsense/` and `math/` files; None reads the hub.
        label_noise: share of training rows that get another row's response; `answer` stays true.
        difficulty: "easy", "medium" or "hard", for the built-in tasks.

    Raises:
        UserError: if the task, split or difficulty is unknown, or data is missing or malformed.
    """
    check_split(split)
    _check_name(name)
    examples = builtin.load(name, split, size=size, seed=seed, difficulty=difficulty)
    if label_noise and split.startswith("train"):
        examples = with_label_noise(examples, fraction=label_noise, seed=seed)
    return examples


def score(example: Example, generated_text: str) -> float:
    """Score what a model wrote after `example.prompt`, from 0.0 (wrong) to 1.0 (right)."""
    _check_name(example.task)
    return builtin.score(example, generated_text)


def _check_name(name: str) -> None:
    if name not in names():
        raise UserError(f"there is no task {name!r}: choose one of {', '.join(names())}")
