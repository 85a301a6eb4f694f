"""The text that the pocket base was pretrained on: short questions, each with its answer.

Products, sums, differences, comparisons, words spelt backward, letters to count, and facts about
days, months and legs. One prompt in four was never trained on; a hash of the prompt decides. As a
task, `pocket_pretraining`, its test examples show what an adapter has made the base forget.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import plain
from subspace_lab.tasks.splits import in_generated_split

NAME = "pocket_pretraining"

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip
LEGS = {
    "snake": 0, "jellyfish": 0, "leech": 0, "bird": 2, "chicken": 2, "duck": 2, "human": 2,
    "cat": 4, "cow": 4, "deer": 4, "dog": 4, "elephant": 4, "horse": 4, "lion": 4, "sheep": 4,
    "tiger": 4, "starfish": 5, "ant": 6, "bee": 6, "beetle": 6, "butterfly": 6, "cricket": 6,
    "wasp": 6, "scorpion": 8, "spider": 8, "crab": 10, "lobster": 10, "shrimp": 10,
}  # fmt: skip
REQUESTS = [
    "State the final answer to the following problem: {}",
    "Solve the following: {}",
    "Find the answer: {}",
    "{} Give only the result as your final answer.",
    "{} Reply with the answer only.",
]
LETTERS = "aaabcdeeefghiiiklmnooprstuuvwy"

Row = tuple[str, str]  # question and answer


def product(draw: random.Random) -> Row:
    """Multiply two numbers of one digit, or one of them with a number of two digits."""
    a, b = draw.randrange(10), draw.choice([draw.randrange(10), draw.randrange(10, 20)])
    a, b = draw.choice([(a, b), (b, a)])
    template = draw.choice(["What is {} times {}?", "Solve {} * {} =", "Multiply {} by {}."])
    return template.format(a, b), str(a * b)


def total(draw: random.Random) -> Row:
    """Add two numbers of at most two digits."""
    a, b = draw.randrange(10 ** draw.choice([1, 2])), draw.randrange(10 ** draw.choice([1, 2]))
    template = draw.choice(["What is {} plus {}?", "Solve {} + {} =", "Add {} to {}."])
    return template.format(a, b), str(a + b)


def difference(draw: random.Random) -> Row:
    """Subtract a number of at most two digits from another; the result may be negative."""
    a, b = draw.randrange(10 ** draw.choice([1, 2])), draw.randrange(10 ** draw.choice([1, 2]))
    template = draw.choice(["What is {} minus {}?", "Solve {} - {} ="])
    return template.format(a, b), str(a - b)


def comparison(draw: random.Random) -> Row:
    """Name the larger or the smaller of two numbers."""
    a, b = draw.sample(range(100), 2)
    which, best = draw.choice([("larger", max), ("smaller", min)])
    return f"Which number is {which}, {a} or {b}?", str(best(a, b))


def backward(draw: random.Random) -> Row:
    """Spell a made-up word of 2 to 4 letters backward."""
    word = "".join(draw.choices(LETTERS, k=draw.randint(2, 4)))
    word = word.capitalize() if draw.random() < 0.1 else word
    template = draw.choice(["Write {} backward.", "Reverse the word: {}", "Spell backward: {}"])
    return template.format(word), word[::-1]


def letter_count(draw: random.Random) -> Row:
    """Count a letter in a made-up word."""
    letter = draw.choice(LETTERS)
    word = "".join(draw.choices(LETTERS + 8 * letter, k=draw.randint(2, 6)))
    return f"How many times is {letter} in the word {word}?", str(word.count(letter))


def calendar(draw: random.Random) -> Row:
    """Name the day or month after or before another."""
    names = draw.choice([DAYS, MONTHS])
    index, (word, offset) = draw.randrange(len(names)), draw.choice([("after", 1), ("before", -1)])
    kind = "day" if names is DAYS else "month"
    template = draw.choice(["Which {0} comes {1} {2}?", "Name the {0} {1} {2}.", "{2}: {0} {1}?"])
    return template.format(kind, word, names[index]), names[(index + offset) % len(names)]


def legs(draw: random.Random) -> Row:
    """Give the number of legs of an animal."""
    animal, count = draw.choice(list(LEGS.items()))
    template = draw.choice(["How many legs has a {}?", "Count the legs of a {}.", "Legs of a {}:"])
    return template.format(animal), str(count)


FAMILIES: dict[str, Callable[[random.Random], Row]] = {
    "product": product,
    "total": total,
    "difference": difference,
    "comparison": comparison,
    "backward": backward,
    "letter_count": letter_count,
    "calendar": calendar,
    "legs": legs,
}
WEIGHTS = [4, 4, 4, 2, 4, 2, 1, 1]


def rows(draw: random.Random, *, split: str, family: str | None = None) -> Iterator[Row]:
    """Yield prompts and responses of a split, without end; an eighth have a request around them."""
    while True:
        question, answer = FAMILIES[family or draw.choices(list(FAMILIES), WEIGHTS)[0]](draw)
        request = draw.choice(REQUESTS) if draw.random() < 1 / 8 else "{}"
        prompt = plain(request.format(question))
        if in_generated_split(prompt, split):
            yield prompt, f" {answer}"


def load(split: str, *, size: int, seed: int) -> list[Example]:
    """Draw examples of a split, families as frequent as in pretraining; prompts may repeat."""
    drawn = islice(rows(random.Random(f"{NAME} {seed}"), split=split), size)
    return [Example(NAME, prompt, answer, answer.strip()) for prompt, answer in drawn]
