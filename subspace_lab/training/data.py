"""From examples to batches: prompt + response + end of sequence, loss on the response only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from subspace_lab.calibration import nats_at_temperatures
from subspace_lab.errors import UserError
from subspace_lab.tasks.encoding import encode_prompt, encode_response
from subspace_lab.tasks.examples import Example
from subspace_lab.teacher_forcing import log_probabilities, score_responses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[dict[str, list[int]]]:
    """Tokenize examples into `input_ids` and `labels`, the prompt's labels being ignored.

    Prompt and response are tokenized separately, so that the prompt's tokens are the ones that
    generation starts from.

    Raises:
        UserError: if an example is longer than `max_length` tokens.
    """
    tokenized = []
    for i, example in enumerate(tqdm(examples, desc="tokenizing", delay=1, disable=None)):
        prompt = encode_prompt(tokenizer, example.prompt)
        target = encode_response(tokenizer, example.response, with_eos=True)
        if len(prompt) + len(target) > max_length:
            raise UserError(
                f"example {i} of {example.task} has {len(prompt) + len(target)} tokens: raise "
                f"`max_length` (now {max_length})"
            )
        tokenized.append({"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target})
    return tokenized


class RightPadding:
    """Collator: pads a batch on the right, with an attention mask and ignored labels.

    The loss needs logits only from the last prompt token of the shortest prompt on, so
    `logits_to_keep` asks the model for no more: in a batch of long prompts and short responses the
    head over a large vocabulary is much of the work, and its logits are most of the memory.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor | int]:
        """Collate examples.

        Returns:
            `input_ids` and `attention_mask` (batch, longest), `labels` (batch, kept) of the last
            positions, and `logits_to_keep`, their number.
        """
        longest = max(len(example["input_ids"]) for example in examples)
        prompts = [sum(label == IGNORED for label in example["labels"]) for example in examples]
        kept = longest - max(min(prompts) - 1, 0)

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor(
                [example[name] + [value] * (longest - len(example[name])) for example in examples]
            )

        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "labels": padded("labels", IGNORED)[:, -kept:],
            "logits_to_keep": kept,
        }


def data_hash(examples: Sequence[Example]) -> str:
    """Identify a list of examples by its content."""
    content = json.dumps([asdict(example) for example in examples], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def response_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Select the response tokens of a batch, and the logits from which each is predicted.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length) of the same positions; prompt and padding are `IGNORED`.

    Returns:
        Logits (tokens, vocabulary), tokens (tokens,), and the example of each, (tokens,).
    """
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return logits[rows, places], labels[rows, places + 1], rows


def response_statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """Reduce logits (batch, length, vocabulary) to what evaluation needs, on their device.

    Returns:
        (batch, 3): negative log-likelihood of the response in nats, its tokens, and 1 if greedy
        decoding would write it.
    """
    predicting, targets, rows = response_tokens(logits, labels)
    scores = score_responses(log_probabilities(predicting), targets, rows, count=len(labels))
    return torch.stack([scores.nats, scores.tokens, scores.exact], dim=-1).to(logits.device).float()


def statistics_with_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """Add the loss at other temperatures to `response_statistics`.

    Returns:
        (batch, 3 + temperatures): the statistics, and the nats of the response at each of
        `calibration.TEMPERATURES`.
    """
    predicting, targets, rows = response_tokens(logits, labels)
    by_token = nats_at_temperatures(predicting, targets)
    by_example = by_token.new_zeros(len(labels), by_token.shape[-1]).index_add(0, rows, by_token)
    return torch.cat([response_statistics(logits, labels), by_example.float()], dim=-1)


def summarize(statistics: Any) -> dict[str, float]:
    """Reduce `response_statistics`, whatever follows, to loss (nats per token) and exact match."""
    nats, tokens, exact = torch.as_tensor(statistics).double()[:, :3].unbind(-1)
    return {
        "response_loss": float(nats.sum() / tokens.sum()),
        "exact_match": float(exact.mean()),
        "examples": float(len(exact)),
    }
