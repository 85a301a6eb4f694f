"""The examples of a training run: loaded, tokenized, and short enough."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.models import context_length
from subspace_lab.tasks import Example
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import tokenize
from subspace_lab.training.memorization import memorization_sets


def load_examples(config: TrainConfig) -> dict[str, list[Example]]:
    """Load the examples that a configuration trains on, evaluates and is scored on, by split."""
    examples: dict[str, list[Example]] = {}
    examples[config.train_split] = _training_examples(config, label_noise=config.label_noise)
    evaluated: dict[str, int | None] = {}
    if config.eval_split != "none":
        evaluated[config.eval_split] = config.eval_size
    if config.test_size is not None:
        evaluated["test"] = config.test_size
    for split, size in evaluated.items():
        examples[split] = tasks.load(
            config.task,
            split,
            size=size,
            seed=tasks.EVALUATION_SEED,
            data_dir=config.data_dir,
            difficulty=config.difficulty,
        )
    return examples


def _training_examples(config: TrainConfig, *, label_noise: float) -> list[Example]:
    return tasks.load(
        config.task,
        config.train_split,
        size=config.train_size,
        seed=config.seed_of("data"),
        noise_seed=config.seed_of("noise"),
        label_noise=label_noise,
        data_dir=config.data_dir,
        difficulty=config.difficulty,
    )


def tokenized_memorization_sets(
    config: TrainConfig, trained: list[Example], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[dict[str, list[int]]]]:
    """Tokenize the sets of training examples under label noise (`memorization`); none without."""
    if not config.label_noise:
        return {}
    sets = memorization_sets(trained, _training_examples(config, label_noise=0.0))
    dropping = replace(config, drop_long_rows=True)  # a true response may be longer
    return {
        name: tokenize_examples(dropping, examples, tokenizer) for name, examples in sets.items()
    }


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
