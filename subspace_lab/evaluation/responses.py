"""Teacher forcing: prompts with their responses in batches, and the logits of the response tokens.

The logits at a position are for the next token, so those of a response start at the prompt's last
token. Nothing before the last token of a batch's shortest prompt is asked of the model: the logits
of a whole (batch, length, vocabulary) are large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from subspace_lab.evaluation.batching import padded_batches
from subspace_lab.tasks.encoding import encode_prompt, encode_response
from subspace_lab.teacher_forcing import ResponseScores, score_responses

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ResponseBatch:
    """Some prompts with their responses, padded on the right.

    Attributes:
        indices: which of all pairs these are.
        input_ids: tokens of prompt and response.
        attention_mask: 0 at padding.
        first: the first place whose logits are needed: the shortest prompt's last token.
        rows: of each response token, its row in the batch; rows ascend.
        places: of each response token, the place whose logits predict it.
        targets: the response tokens.
    """

    indices: list[int]
    input_ids: Int[Tensor, "batch length"]
    attention_mask: Int[Tensor, "batch length"]
    first: int
    rows: Int[Tensor, " tokens"]
    places: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]

    def logits(self, model: nn.Module) -> Float[Tensor, "tokens vocabulary"]:
        """Compute the logits that predict the response tokens."""
        needed = self.input_ids.shape[1] - self.first
        logits = model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            logits_to_keep=needed,
            use_cache=False,
        ).logits[:, -needed:]
        selected: Tensor = logits[self.rows, self.places - self.first]
        return selected

    def scores(self, log_probabilities: Float[Tensor, "tokens vocabulary"]) -> ResponseScores:
        """Score the responses, given what some predictor says of their tokens."""
        return score_responses(
            log_probabilities, self.targets, self.rows, count=len(self.input_ids)
        )


def response_batches(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int,
    device: torch.device,
    description: str,
    with_eos: bool = True,
) -> Iterator[ResponseBatch]:
    """Batch (prompt, response) pairs by length, with a progress bar.

    Args:
        tokenizer: of the model.
        pairs: prompts with their responses.
        batch_size: pairs in one batch.
        device: where the batches go.
        description: of the progress bar.
        with_eos: whether the end of sequence is one of the response's tokens, as in training.
    """
    prompts, responses = [], []
    for prompt, text in tqdm(pairs, desc="tokenizing", delay=1, disable=None):
        prompts.append(encode_prompt(tokenizer, prompt))
        responses.append(encode_response(tokenizer, text, with_eos=with_eos))
    for batch in padded_batches(
        [prompt + response for prompt, response in zip(prompts, responses, strict=True)],
        batch_size=batch_size,
        side="right",
        device=device,
        description=description,
    ):
        tokens = [
            (row, len(prompts[index]) - 1 + offset, token)
            for row, index in enumerate(batch.indices)
            for offset, token in enumerate(responses[index])
        ]
        first = min(len(prompts[index]) for index in batch.indices) - 1
        table = torch.tensor(tokens, dtype=torch.long, device=device).reshape(-1, 3)
        yield ResponseBatch(
            batch.indices, batch.input_ids, batch.attention_mask, first, *table.unbind(-1)
        )
