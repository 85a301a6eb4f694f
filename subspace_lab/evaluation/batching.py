"""Token sequences of unequal length, sorted, padded and put on the model's device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batch:
    """Some of the sequences, with the indices that they have among all of them."""

    indices: list[int]
    input_ids: Int[Tensor, "batch length"]
    attention_mask: Int[Tensor, "batch length"]  # 0 at padding; the pad token's id is not used


def padded_batches(
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    side: Literal["left", "right"],
    device: torch.device,
    description: str,
) -> Iterator[Batch]:
    """Batch by length, longest first, so that running out of memory happens at once or never."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    with tqdm(total=len(order), desc=description, unit="seq", disable=None) as progress:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            length = len(sequences[indices[0]])
            input_ids = torch.zeros(len(indices), length, dtype=torch.long)
            attention_mask = torch.zeros_like(input_ids)
            for row, index in enumerate(indices):
                tokens = torch.tensor(sequences[index], dtype=torch.long)
                where = slice(length - len(tokens), None) if side == "left" else slice(len(tokens))
                input_ids[row, where] = tokens
                attention_mask[row, where] = 1
            yield Batch(indices, input_ids.to(device), attention_mask.to(device))
            progress.update(len(indices))


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Without gradients, dropout or rank masks; afterwards the model is as it was.

    `no_grad` rather than `inference_mode`: a model under training must not keep inference
    tensors in a cache that the next training step would read.
    """
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
