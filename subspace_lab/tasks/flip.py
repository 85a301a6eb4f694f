"""Reversed words: "Flip abc" is answered by "cba".

A skill that the pocket base was pretrained on, under a new wording: some 16 tokens an example. The
base answers a few per cent correctly before training. It is the standard bench for that base.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

LETTERS = "aaabcdeeefghiiiklmnooprstuuvwy"


def questions(
    *, min_letters: int, max_letters: int, seed: int, length: int
) -> Iterator[tuple[str, str]]:
    """Yield questions and answers.

    >>> next(questions(min_letters=3, max_letters=3, seed=0, length=1))
    ('Flip vto', 'otv')
    """
    generator = random.Random(f"flip {seed}")
    for _ in range(length):
        letters = generator.choices(LETTERS, k=generator.randint(min_letters, max_letters))
        yield f"Flip {''.join(letters)}", "".join(reversed(letters))
