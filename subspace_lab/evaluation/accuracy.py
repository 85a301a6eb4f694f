"""Accuracy of generated answers, by each task's own scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from subspace_lab import tasks
from subspace_lab.evaluation.generation import generate
from subspace_lab.evaluation.records import example_records
from subspace_lab.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generated_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Generate greedily after every prompt and score what was written.

    Returns:
        One row per example (see `records.example_records`); `correct` means a full score.
    """
    texts = generate(
        model,
        tokenizer,
        [example.prompt for example in examples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    # Comparing two expressions as mathematics can take a tenth of a second.
    pairs = list(zip(examples, texts, strict=True))
    progress = tqdm(pairs, desc="comparing answers", delay=1, disable=None)
    return example_records(
        examples,
        gold=[example.answer for example in examples],
        prediction=texts,
        correct=[tasks.score(example, text) == 1.0 for example, text in progress],
    )
