"""Did training learn the rule or the noise? Training examples under label noise, in three sets.

The loss on an example whose response was exchanged, against the exchanged response, is low where
the model has memorized the noise; against the true response, where it has learned the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from subspace_lab.tasks import Example

MOST_EXAMPLES = 512  # of each set


def memorization_sets(
    trained: Sequence[Example], true: Sequence[Example]
) -> dict[str, list[Example]]:
    """Sort training examples by what became of their label, at most 512 of each set.

    Args:
        trained: the training examples, with label noise.
        true: the same examples in the same order, without it.

    Returns:
        `train_clean`: examples with their own response; `train_exchanged`: examples with another
        one's response, as trained; `train_true`: the same with their own. Empty sets are left out.
    """
    pairs = list(zip(trained, true, strict=True))
    exchanged = [(wrong, right) for wrong, right in pairs if wrong.response != right.response]
    sets = {
        "train_clean": (right for wrong, right in pairs if wrong.response == right.response),
        "train_exchanged": (wrong for wrong, _ in exchanged),
        "train_true": (right for _, right in exchanged),
    }
    first = {name: list(islice(examples, MOST_EXAMPLES)) for name, examples in sets.items()}
    return {name: examples for name, examples in first.items() if examples}
