"""Which model is it? A hash of everything that its answers depend on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from torch import nn


def weights_hash(model: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of all weights, by name, and of the layers' scalings.

    The weights hold base and adapter; an adapter's alpha is in its scaling alone.
    """
    digest = hashlib.sha256()
    for name, tensor in tqdm(
        model.state_dict().items(), desc="hashing weights", delay=1, disable=None
    ):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for name, module in model.named_modules():
        digest.update(f"{name} {getattr(module, 'scaling', None)}".encode())
    return digest.hexdigest()[:16]
