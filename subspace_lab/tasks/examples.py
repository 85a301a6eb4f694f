"""One example of a task: what the model reads, what it should write, and what the scorer knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One example of a task, with its prompt template applied.

    The training text is `prompt + response + eos`, with the loss on `response + eos` only.

    Attributes:
        task: name of the example's own set, in a union the set that it came from.
        prompt: the whole text that the model reads.
        response: the training target, without the end of sequence. Under label noise it is
            another example's response.
        answer: the true label, for the scorer.
        choices: every candidate response where the question is multiple choice, else empty.
        metadata: what else the scorer needs, and where the example came from.
    """

    task: str
    prompt: str
    response: str
    answer: str
    choices: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
