"""How likely given responses are, and whether greedy decoding would write them.

A response y of T tokens after the prompt x has, from one forward pass,

    loss = -log p(y | x) / T = -(1/T) sum_t log p(y_t | x, y_<t)      (nats per token),

the end of sequence being one of the T tokens where the model was trained with it. Greedy generation
reproduces the response if and only if every y_t is the argmax of p(. | x, y_<t): up to its first
departure greedy decoding sees exactly the teacher-forced prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor


@dataclass(frozen=True)
class ResponseScores:
    """Scores of several responses, on the processor.

    Attributes:
        nats: -log p(response | prompt).
        tokens: of each response.
        matched: how many of its leading tokens are the argmax.
    """

    nats: Float64[Tensor, " responses"]
    tokens: Int[Tensor, " responses"]
    matched: Int[Tensor, " responses"]

    @property
    def exact(self) -> Bool[Tensor, " responses"]:
        """Whether greedy decoding would write the whole response."""
        return self.matched == self.tokens


def log_probabilities(logits: Float[Tensor, "*batch vocabulary"]) -> Tensor:
    """Normalize logits, in float32 or better.

    >>> log_probabilities(torch.zeros(4, dtype=torch.bfloat16)).exp()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def score_responses(
    log_probabilities: Float[Tensor, "tokens vocabulary"],
    targets: Int[Tensor, " tokens"],
    responses: Int[Tensor, " tokens"],
    *,
    count: int,
) -> ResponseScores:
    """Score responses whose tokens lie one after another.

    Args:
        log_probabilities: of the vocabulary at each response token.
        targets: the response tokens.
        responses: of each token, the number of its response; ascending.
        count: number of responses.
    """
    nats = -log_probabilities.gather(-1, targets[:, None]).squeeze(-1).cpu().double()
    hits = (log_probabilities.argmax(-1) == targets).cpu()
    responses = responses.cpu()
    tokens = responses.bincount(minlength=count)
    places = torch.arange(len(responses)) - (tokens.cumsum(0) - tokens)[responses]
    return ResponseScores(
        nats=nats.new_zeros(count).index_add(0, responses, nats),
        tokens=tokens,
        matched=tokens.scatter_reduce(0, responses[~hits], places[~hits], reduce="amin"),
    )
