"""The training examples that an initialization looks at before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subspace_lab.training.data import IGNORED, RightPadding


def initialization_batches(
    examples: Sequence[dict[str, list[int]]],
    *,
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
) -> list[dict[str, Tensor]]:
    """Batch tokenized examples with labels at all positions, (batch, longest) like the tokens."""
    collate = RightPadding(pad_token_id)
    batches = []
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size])
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        missing = tensors["input_ids"].shape[1] - tensors["labels"].shape[1]
        tensors["labels"] = torch.nn.functional.pad(tensors["labels"], (missing, 0), value=IGNORED)
        batches.append({name: tensor.to(device) for name, tensor in tensors.items()})
    return batches
