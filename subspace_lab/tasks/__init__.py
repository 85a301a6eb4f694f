"""Tasks: examples with their prompt applied, and a scorer for what a model writes.

    from subspace_lab import tasks

    examples = tasks.load("demo", "train", size=640, seed=0)
    tasks.score(examples[0], " 42")

`names()` lists the tasks. Splits are "train", "validation" (held out of the training examples by a
hash of the prompt), "train+validation" (every training example) and "test".

A task may also be a file of your own (`mine.jsonl`, see `own_files`), or a single generator of
reasoning-gym with settings of its own (`reasoning_gym:gcd:max_value=60`).

Names joined by "+" are a mixture, "boolq+openbookqa": its examples come one set after another.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError
from subspace_lab.tasks import builtin, code, commonsense, conversation, math, own_files
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.noise import with_label_noise
from subspace_lab.tasks.splits import check_split, in_training_split

__all__ = [
    "EVALUATION_SEED",
    "GENERATED",
    "Example",
    "check_name",
    "is_generated",
    "load",
    "names",
    "score",
]

GENERATED = builtin.NAMES
"""The built-in tasks, whose examples are generated: as many as are asked for."""

EVALUATION_SEED = 0
"""Seed of the examples that are evaluated: one set for all runs, whatever their training seed.

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


def is_generated(name: str) -> bool:
    """Tell whether a task's examples are generated, as many as are asked for."""
    return name in GENERATED or name.startswith(builtin.SINGLE)


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
    """Load or generate the examples of a task, or of a mixture of tasks.

    Args:
        name: one of `names()`, a file, a single generator, or several of them joined by "+".
        split: "train", "validation", "train+validation" or "test".
        size: at most this many examples (None: all, or the built-in default); the tasks of a
            mixture share it equally, the first ones having one more where it does not divide.
        seed: of the drawn examples of a set, and of the generated ones of a built-in task.
        data_dir: folder that holds `commonsense/boolq/train.json`, `math/gsm8k_train.jsonl` and
            so on, as each family's module says; None reads the hub.
        label_noise: share of training examples that get the response of another; `answer` stays
            true.
        noise_seed: seed of the label noise; None: `seed`.
        difficulty: "easy", "medium" or "hard", for the built-in tasks.
        draw: whether `size` examples of a set are drawn by `seed`, or are its first ones.

    Raises:
        UserError: if the task, split or difficulty is unknown, the size below 1, or data is missing
            or malformed.
    """
    check_split(split)
    if size is not None and size < 1:
        raise UserError(f"size must be at least 1, not {size}")
    parts = name.split("+")
    for part in parts:
        check_name(part)
    shared: dict[str, Any] = {
        "seed": seed,
        "data_dir": data_dir,
        "label_noise": label_noise,
        "noise_seed": seed if noise_seed is None else noise_seed,
        "difficulty": difficulty,
        "draw": draw,
    }
    return [
        example
        for i, part in enumerate(parts)
        for example in _load_one(part, split, size=_share(size, i, len(parts)), **shared)
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
    if is_generated(name):
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
    return _scorer(example.task)(example, generated_text)


def _load_set(name: str, split: str, *, data_dir: str | Path | None) -> list[Example]:
    """Load a published set; a hash decides which training examples are held out for validation."""
    if _is_file(name):
        return own_files.load(name, split, data_dir=data_dir)
    if split == "test":
        return _LOADERS[name](name, "test", data_dir=data_dir)
    examples = _LOADERS[name](name, "train", data_dir=data_dir)
    return [example for example in examples if in_training_split(example.prompt, split)]


def check_name(name: str, *, others: tuple[str, ...] = ()) -> None:
    """Refuse a name that `load` does not know.

    Args:
        name: one task's.
        others: further choices, for the message.

    Raises:
        UserError: if there is no such task.
    """
    if name not in names() and not name.startswith(builtin.SINGLE) and not _is_file(name):
        known = (*names(), *others, f"{builtin.SINGLE}NAME")
        raise UserError(
            f"there is no task {name!r}: choose one of {', '.join(known)} or a .jsonl file"
        )


def _is_file(name: str) -> bool:
    return name.endswith(own_files.ENDINGS)


def _scorer(name: str) -> Callable[[Example, str], float]:
    check_name(name)
    if _is_file(name):
        return own_files.score
    return builtin.score if is_generated(name) else _SCORES[name]
