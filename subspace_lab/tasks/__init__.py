"""Tasks: rows with their prompt applied, and a scorer for what a model writes.

    from subspace_lab import tasks

    rows = tasks.load("demo", "train", size=640, seed=0)
    tasks.score(rows[0], " 42")

`names()` lists the tasks. Splits are "train", "validation" (held out of the training rows by a
hash of the prompt), "train+validation" (every training row) and "test".

Names joined by "+" are a mixture, "boolq+openbookqa": its rows come one set after another.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError
from subspace_lab.tasks import builtin, code, commonsense, conversation, math
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.noise import with_label_noise
from subspace_lab.tasks.splits import check_split, in_training_split

__all__ = ["EVALUATION_SEED", "GENERATED", "Example", "load", "names", "score"]

GENERATED = builtin.NAMES
"""The built-in tasks, whose rows are generated: as many as are asked for."""

EVALUATION_SEED = 0
"""Seed of the examples that are evaluated: one set for all runs, whatever seed each trained with.

None of them is a training example of any seed, since a hash of the prompt decides the split.
"""

_SCORES: dict[str, Callable[[Example, str], float]] = {
    name: family.score
    for family in (builtin, commonsense, math, code, conversation)
    for name in family.NAMES
}
_LOADERS: dict[str, Callable[..., list[Example]]] = {
    name: family.load for family in (commonsense, math, code, conversation) for name in family.NAMES
}


def names() -> tuple[str, ...]:
    """List the names that `load` knows."""
    return tuple(_SCORES)


def load(
    name: str,
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    label_noise: float = 0.0,
    noise_seed: int | None = None,
    difficulty: str = "easy",
    draw: bool = True,
) -> list[Example]:
    """Load or generate the rows of a task, or of a mixture of tasks.

    Args:
        name: one of `names()`, or several joined by "+".
        split: "train", "validation", "train+validation" or "test".
        size: at most this many rows (None: all, or the built-in default); the tasks of a mixture
            share it equally, the first ones having one more where it does not divide.
        seed: the drawn rows of a set, and the generated rows of a built-in task.
        data_dir: folder that holds `commonsense/boolq/train.json`, `math/gsm8k_train.jsonl` and
            so on, as each family's module says; None reads the hub.
        label_noise: share of training rows that get another row's response; `answer` stays true.
        noise_seed: seed of the label noise; None: `seed`.
        difficulty: "easy", "medium" or "hard", for the built-in tasks.
        draw: whether `size` rows of a set are drawn by `seed`, or are its first ones.

    Raises:
        UserError: if the task, split or difficulty is unknown, the size below 1, or data is missing
            or malformed.
    """
    check_split(split)
    if size is not None and size < 1:
        raise UserError(f"a size of {size} rows is no size: ask for 1 or more")
    parts = name.split("+")
    for part in parts:
        _check_name(part)
    shared: dict[str, Any] = {
        "seed": seed,
        "data_dir": data_dir,
        "label_noise": label_noise,
        "noise_seed": seed if noise_seed is None else noise_seed,
        "difficulty": difficulty,
        "draw": draw,
    }
    return [
        row
        for i, part in enumerate(parts)
        for row in _load_one(part, split, size=_share(size, i, len(parts)), **shared)
    ]


def _share(size: int | None, place: int, parts: int) -> int | None:
    return None if size is None else size // parts + (place < size % parts)


def _load_one(
    name: str,
    split: str,
    *,
    size: int | None,
    seed: int,
    data_dir: str | Path | None,
    label_noise: float,
    noise_seed: int,
    difficulty: str,
    draw: bool,
) -> list[Example]:
    if name in builtin.NAMES:
        examples = builtin.load(name, split, size=size, seed=seed, difficulty=difficulty)
    else:
        examples = _load_set(name, split, data_dir=data_dir)
        if size is not None and size < len(examples):
            examples = random.Random(seed).sample(examples, size) if draw else examples[:size]
    if label_noise and split.startswith("train"):
        examples = with_label_noise(examples, fraction=label_noise, seed=noise_seed)
    return examples


def score(example: Example, generated_text: str) -> float:
    """Score what a model wrote after `example.prompt`, from 0.0 (wrong) to 1.0 (right).

    Raises:
        UserError: if the task is unknown, or scored elsewhere (programs run, conversations judged).
    """
    _check_name(example.task)
    return _SCORES[example.task](example, generated_text)


def _load_set(name: str, split: str, *, data_dir: str | Path | None) -> list[Example]:
    """Load a published set; validation rows are taken out of the training rows by their hash."""
    if split == "test":
        return _LOADERS[name](name, "test", data_dir=data_dir)
    rows = _LOADERS[name](name, "train", data_dir=data_dir)
    return [row for row in rows if in_training_split(row.prompt, split)]


def _check_name(name: str) -> None:
    if name not in names():
        raise UserError(f"there is no task {name!r}: choose one of {', '.join(names())}")
