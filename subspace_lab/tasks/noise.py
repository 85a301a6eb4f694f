"""Label noise: wrong training targets whose number and places are known."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from subspace_lab.errors import UserError
from subspace_lab.tasks.examples import Example


def with_label_noise(examples: Sequence[Example], *, fraction: float, seed: int) -> list[Example]:
    """Give a fraction of the examples the response of another example of the same kind.

    The kind is the set, or the generator in the built-in tasks, so a wrong response still looks
    like an answer. Only responses that differ from the example's own are drawn. `answer` keeps the
    true label, and `metadata["noisy"]` marks the example.

    Args:
        examples: the training examples.
        fraction: share of examples to change; `round(fraction * len(examples))` of them are.
        seed: which examples change and what they get.

    Raises:
        UserError: if the fraction is not in [0, 1], or all examples of a kind have one response.
    """
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"label noise is a fraction between 0 and 1, not {fraction}")
    generator = random.Random(f"label noise {seed}")
    responses = defaultdict(list)
    for example in examples:
        responses[_kind(example)].append(example.response)
    several = {kind: len(set(texts)) > 1 for kind, texts in responses.items()}
    noisy = list(examples)
    for index in generator.sample(range(len(noisy)), round(fraction * len(noisy))):
        example = noisy[index]
        kind = _kind(example)
        if not several[kind]:
            raise UserError(
                f"label noise needs two different responses among the examples of {kind!r}: load "
                "more examples"
            )
        # Drawn again until it is wrong: listing all wrong ones for each example takes minutes.
        wrong = example.response
        while wrong == example.response:
            wrong = generator.choice(responses[kind])
        noisy[index] = replace(
            example, response=wrong, metadata={**example.metadata, "noisy": True}
        )
    return noisy


def _kind(example: Example) -> str:
    return str(example.metadata.get("generator", example.task))
