"""The examples of a training run: loaded, tokenized, and short enough."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation.batching import context_length
from subspace_lab.tasks import Example
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import tokenize


def load_examples(config: TrainConfig) -> dict[str, list[Example]]:
    """Load the examples that a configuration trains on and evaluates during training, by split."""
    shared: dict[str, Any] = {"data_dir": config.data_dir, "difficulty": config.difficulty}
    examples: dict[str, list[Example]] = {
        config.train_split: tasks.load(
            config.task,
            config.train_split,
            size=config.train_size,
            seed=config.seed,
            label_noise=config.label_noise,
            **shared,
        )
    }
    if config.eval_split != "none":
        examples[config.eval_split] = tasks.load(
            config.task,
            config.eval_split,
            size=config.eval_size,
            seed=tasks.EVALUATION_SEED,
            **shared,
        )
    return examples


def tokenize_examples(
    config: TrainConfig, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, list[int]]]:
    """Tokenize examples, without those that are too long if the configuration says so.

    Raises:
        UserError: if an example is too long and the configuration does not drop it, or all are.
    """
    limit = sys.maxsize if config.drop_long_rows else config.max_length
    tokenized = tokenize(examples, tokenizer, max_length=limit)
    kept = [tokens for tokens in tokenized if len(tokens["input_ids"]) <= config.max_length]
    if not kept:
        raise UserError(f"no example of {config.task} has {config.max_length} tokens or fewer")
    return kept


def refuse_examples_beyond_the_context(
    model: PreTrainedModel, tokenized: Mapping[str, list[dict[str, list[int]]]]
) -> None:
    """Refuse examples that are longer than the sequences that a model was made for.

    Raises:
        UserError: naming the longest.
    """
    longest = max(len(example["input_ids"]) for split in tokenized.values() for example in split)
    context = context_length(model)
    if context is not None and longest > context:
        raise UserError(
            f"an example has {longest} tokens, more than the base's context of {context}: lower "
            "`max_length` and set `drop_long_rows`"
        )
