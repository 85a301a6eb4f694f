"""The built-in tasks: mixtures of seeded reasoning-gym generators, nothing to download.

A mixture names a few generators and their settings at each difficulty. Every question is drawn
from a stream that depends on the seed, kept if its hash falls into the wanted split, and never
repeated, so no two splits share a question. The text that the pocket model was pretrained on
(`pocket_text`) is a task, too, without difficulties. `demo` is meant for models like SmolLM2-135M,
`pocket` for the pocket model that ships with this package.

Some answers are unbalanced: about three letter counts in four and a third of the greatest common
divisors are 1. Compare an accuracy on these generators with the share of their most frequent
answer. Examples of one digit run out first, so larger sizes hold a larger share of harder examples.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from subspace_lab.errors import UserError
from subspace_lab.tasks import flip, pocket_text
from subspace_lab.tasks.answers import same_text
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import plain
from subspace_lab.tasks.splits import in_generated_split

DIFFICULTIES = ("easy", "medium", "hard")
SIZES = {"train": 1024, "validation": 256, "train+validation": 1280, "test": 256}

Settings = Mapping[str, Any]

PLUS_MINUS = {"operators": ("+", "-"), "allow_parentheses": False, "allow_negation": False}
CHAIN_SUM = (
    {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    {"min_terms": 3, "max_terms": 4, "min_digits": 2, "max_digits": 3},
)
LETTER_COUNTING = (
    {"min_words": 2, "max_words": 3},
    {"min_words": 3, "max_words": 5},
    {"min_words": 5, "max_words": 8},
)

MIXTURES: Mapping[str, Mapping[str, tuple[Settings, Settings, Settings]]] = {
    "demo": {
        "chain_sum": CHAIN_SUM,
        "products": (
            {"min_digits": 1, "max_digits": 2},
            {"min_digits": 2, "max_digits": 2},
            {"min_digits": 2, "max_digits": 3},
        ),
        "gcd": ({"max_value": 60}, {"max_value": 200}, {"max_value": 1000}),
    },
    "pocket": {
        "basic_arithmetic": (
            {**PLUS_MINUS, "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
            {**PLUS_MINUS, "min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
            {**PLUS_MINUS, "min_terms": 3, "max_terms": 4, "min_digits": 2, "max_digits": 3},
        ),
        "chain_sum": CHAIN_SUM,
        "letter_counting": LETTER_COUNTING,
    },
    "flip": {
        "flip": (
            {"min_letters": 2, "max_letters": 4},
            {"min_letters": 3, "max_letters": 6},
            {"min_letters": 5, "max_letters": 8},
        ),
    },
}
"""Mixture, generator, then the generator's settings when easy, medium and hard."""

NAMES = (*MIXTURES, pocket_text.NAME)
SINGLE = "reasoning_gym:"
"""Begins the name of a single generator: reasoning_gym:gcd or reasoning_gym:gcd:max_value=60."""


def load(
    name: str, split: str, *, size: int | None = None, seed: int = 0, difficulty: str = "easy"
) -> list[Example]:
    """Generate `size` examples of a mixture, its generators in equal parts, in a shuffled order.

    Args:
        name: one of `NAMES`, or a single generator of reasoning-gym with settings of its own,
            `reasoning_gym:chain_sum:min_terms=2,max_terms=3`.
        split: one of `splits.SPLITS`.
        size: number of examples (None: the split's entry in `SIZES`).
        seed: which examples; equal arguments give equal examples.
        difficulty: one of `DIFFICULTIES`.

    Raises:
        UserError: if reasoning-gym is missing, the difficulty unknown, or a generator has too few
            different questions at this difficulty.
    """
    if difficulty not in DIFFICULTIES:
        raise UserError(
            f"there is no difficulty {difficulty!r}: choose one of {', '.join(DIFFICULTIES)}"
        )
    size = SIZES[split] if size is None else size
    if name == pocket_text.NAME:
        return pocket_text.load(split, size=size, seed=seed)
    if name.startswith(SINGLE):
        generators = _single(name)
    else:
        place = DIFFICULTIES.index(difficulty)
        generators = {generator: levels[place] for generator, levels in MIXTURES[name].items()}
    examples = []
    for position, (generator, settings) in enumerate(generators.items()):
        share = size // len(generators) + (position < size % len(generators))
        examples += _different_examples(
            name, generator, settings, split=split, size=share, seed=seed
        )
    random.Random(seed).shuffle(examples)
    return examples


def score(example: Example, generated_text: str) -> float:
    r"""Give 1.0 if the text is the answer (its first line, for an answer of one), else 0.0.

    >>> example = Example("demo", "What is 1 + 2?\nAnswer:", " 3", "3")
    >>> [score(example, text) for text in (" 3", " 3\nWhat is", " 33", "")]
    [1.0, 1.0, 0.0, 0.0]
    """
    return float(same_text(generated_text, example.answer))


def _single(name: str) -> dict[str, Settings]:
    """Read the name of a single generator.

    >>> _single("reasoning_gym:chain_sum:min_terms=2,allow_negation=false")
    {'chain_sum': {'min_terms': 2, 'allow_negation': False}}
    """
    generator, _, text = name.removeprefix(SINGLE).partition(":")
    pairs = [setting.partition("=") for setting in text.split(",")] if text else []
    if not all(key and equals for key, equals, _ in pairs):
        raise UserError(f"the settings of {name!r} must be NAME=VALUE, separated by commas")
    return {generator: {key: yaml.safe_load(value) for key, _, value in pairs}}


def _different_examples(
    name: str, generator: str, settings: Settings, *, split: str, size: int, seed: int
) -> list[Example]:
    examples: dict[str, Example] = {}
    for question, answer in _stream(generator, settings, seed=seed, length=200 * size + 2000):
        if len(examples) == size:
            break
        prompt = plain(question)
        if in_generated_split(prompt, split):
            metadata = {"generator": generator}
            examples.setdefault(
                prompt, Example(name, prompt, f" {answer}", answer, metadata=metadata)
            )
    if len(examples) < size:
        raise UserError(
            f"the generator {generator} of {name!r} has only {len(examples)} different questions "
            f"for the {split} split with these settings, not {size}: ask for fewer examples or "
            "raise the difficulty"
        )
    return list(examples.values())


def _stream(
    generator: str, settings: Settings, *, seed: int, length: int
) -> Iterator[tuple[str, str]]:
    """Yield questions and answers.

    Example i of reasoning-gym is drawn with the seed `base + i`.
    """
    if generator == "flip":
        yield from flip.questions(**settings, seed=seed, length=length)
        return
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            'the built-in tasks need reasoning-gym: run `pip install "subspace_lab[builtin]"`'
        ) from error
    # Neighbouring seeds would give the same examples, shifted by one; hashed seeds lie far apart.
    digest = hashlib.sha256(f"{seed} {generator}".encode()).digest()
    base = int.from_bytes(digest[:4], "big")
    try:
        examples = reasoning_gym.create_dataset(generator, seed=base, size=length, **settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"reasoning-gym cannot make {generator} with {dict(settings) or 'its defaults'} "
            f"({error}): choose another generator or other settings"
        ) from error
    for index in range(length):
        example = examples[index]
        yield example["question"].strip(), example["answer"].strip()
