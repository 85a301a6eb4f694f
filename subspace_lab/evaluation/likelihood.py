"""What a model thinks of given responses: loss, exact match and multiple choice.

All three read one teacher-forced forward pass (`subspace_lab.teacher_forcing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch

from subspace_lab import tasks, teacher_forcing
from subspace_lab.calibration import Calibration
from subspace_lab.errors import UserError
from subspace_lab.evaluation.batching import evaluation_mode
from subspace_lab.evaluation.records import example_records
from subspace_lab.evaluation.responses import response_batches
from subspace_lab.models import context_length
from subspace_lab.tasks.encoding import decode
from subspace_lab.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Normalization = Literal["sum", "mean"]


@dataclass(frozen=True)
class ResponseScore:
    """One response under teacher forcing."""

    nats: float  # -log p(response | prompt)
    tokens: int  # of the response, with its end of sequence if that was scored
    matched: int  # leading tokens that are the argmax; all of them: greedy decoding reproduces it
    prediction: str  # greedy decoding up to and with its first departure from the response

    @property
    def exact(self) -> bool:
        """Whether greedy decoding reproduces the response."""
        return self.matched == self.tokens

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens


@dataclass(frozen=True)
class ResponseLoss:
    """Mean negative log-likelihood of the responses of a set of examples, in nats."""

    per_token: float  # sum of nats / sum of tokens
    per_example: float  # sum of nats / number of examples
    tokens: int
    examples: int


def score_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    with_eos: bool = True,
    calibration: Calibration | None = None,
) -> list[ResponseScore]:
    """Score each (prompt, response) pair, in the order given.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        pairs: Prompts with their responses.
        batch_size: Pairs in one forward pass.
        with_eos: Whether the end of sequence is one of the response's tokens, as in training.
        calibration: What the predictions of the response tokens are added to.

    Raises:
        UserError: if a pair does not fit into the model's context.
    """
    scores: dict[int, ResponseScore] = {}
    context = context_length(model)
    with evaluation_mode(model):
        for batch in response_batches(
            tokenizer,
            pairs,
            batch_size=batch_size,
            device=model.device,
            description="scoring",
            with_eos=with_eos,
        ):
            length = batch.input_ids.shape[1]
            if context is not None and length > context:
                raise UserError(
                    f"a prompt and its response have {length} tokens and do not fit into this "
                    f"model's context of {context} tokens: exclude the longest"
                )
            log_probabilities = teacher_forcing.log_probabilities(batch.logits(model))
            scored = batch.scores(log_probabilities)
            if calibration is not None:
                calibration.add(log_probabilities, batch.targets)
            greedy = log_probabilities.argmax(-1)
            for row, index in enumerate(batch.indices):
                matched = int(scored.matched[row])
                scores[index] = ResponseScore(
                    nats=float(scored.nats[row]),
                    tokens=int(scored.tokens[row]),
                    matched=matched,
                    prediction=decode(tokenizer, greedy[batch.rows == row][: matched + 1].tolist()),
                )
    return [scores[index] for index in range(len(pairs))]


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    with_eos: bool = True,
    calibration: Calibration | None = None,
) -> pd.DataFrame:
    """Whether greedy decoding would reproduce each response, from one forward pass.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        examples: Prompts with the responses that are right.
        batch_size: Examples in one forward pass.
        with_eos: Whether the end of sequence is one of the response's tokens, as in training.
        calibration: What the predictions of the response tokens are added to.

    Returns:
        One row per example (see `records.example_records`); `prediction` is the greedy text up to
        and with its first departure from the response.
    """
    pairs = [(example.prompt, example.response) for example in examples]
    scores = score_responses(
        model, tokenizer, pairs, batch_size=batch_size, with_eos=with_eos, calibration=calibration
    )
    return example_records(
        examples,
        gold=[example.response for example in examples],
        prediction=[score.prediction for score in scores],
        correct=[score.exact for score in scores],
        loss=[score.loss for score in scores],
        tokens=[score.tokens for score in scores],
    )


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    normalization: Normalization = "sum",
    batch_size: int = 16,
    with_eos: bool = True,
    calibration: Calibration | None = None,
) -> pd.DataFrame:
    """Pick the most likely of each example's `choices`.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        examples: Multiple-choice examples; `choices` are whole responses.
        normalization: `sum` compares log p(choice | prompt), `mean` the same per token, which
            does not favour short choices.
        batch_size: Choices in one forward pass.
        with_eos: Whether the end of sequence is one of the response's tokens, as in training.
        calibration: What the predictions of the right choice are added to: of the choices that are
            compared, p(choice) is the softmax of their log-probabilities, normalized as they are.

    Returns:
        One row per example (see `records.example_records`); `loss` and `tokens` are those of the
        choice that was picked.

    Raises:
        UserError: if an example has no choices.
    """
    without = next((example for example in examples if not example.choices), None)
    if without is not None:
        raise UserError(
            f"the task {without.task} is not multiple choice: set `metric` to generated or "
            "exact_match"
        )
    pairs = [(example.prompt, choice) for example in examples for choice in example.choices]
    scores = iter(
        score_responses(model, tokenizer, pairs, batch_size=batch_size, with_eos=with_eos)
    )
    picked = []
    for example in examples:
        candidates = [(choice, next(scores)) for choice in example.choices]
        costs = [_cost(score, normalization) for _, score in candidates]
        picked.append(candidates[costs.index(min(costs))])
        right = [tasks.score(example, choice) == 1.0 for choice in example.choices]
        if calibration is not None and any(right):
            log_probabilities = -torch.tensor([costs], dtype=torch.float64)
            calibration.add(log_probabilities.log_softmax(-1), torch.tensor([right.index(True)]))
    return example_records(
        examples,
        gold=[example.answer for example in examples],
        prediction=[choice for choice, _ in picked],
        correct=[
            tasks.score(example, choice) == 1.0
            for example, (choice, _) in zip(examples, picked, strict=True)
        ],
        loss=[score.loss for _, score in picked],
        tokens=[score.tokens for _, score in picked],
    )


def response_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    with_eos: bool = True,
) -> ResponseLoss:
    """Mean negative log-likelihood of the responses, per token and per example."""
    pairs = [(example.prompt, example.response) for example in examples]
    scores = score_responses(model, tokenizer, pairs, batch_size=batch_size, with_eos=with_eos)
    nats = sum(score.nats for score in scores)
    tokens = sum(score.tokens for score in scores)
    return ResponseLoss(nats / tokens, nats / len(scores), tokens, len(scores))


def _cost(score: ResponseScore, normalization: Normalization) -> float:
    return score.nats if normalization == "sum" else score.loss
