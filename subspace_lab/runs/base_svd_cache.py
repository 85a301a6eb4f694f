"""Singular triplets of base weights, kept on disk: they do not change while an adapter trains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from subspace_lab import files
from subspace_lab.linalg import LowRankSVD, base_svd


def cached_base_svd(W0: Float[Tensor, "m n"], *, rank: int, cache: Path) -> LowRankSVD:
    """The `rank` largest singular triplets of a base weight, from the cache where it has them.

    Args:
        W0: base weight (m, n).
        rank: how many triplets.
        cache: a folder, made where it is missing, with one safetensors file per weight and rank,
            named by a hash of the weight's content. 64 triplets of a 4096 x 4096 weight take 4 MB.
    """
    path = cache / f"{_content_hash(W0)}-{rank}.safetensors"
    if path.exists():
        return LowRankSVD(**load_file(path, device=str(W0.device)))
    svd = base_svd(W0, rank=rank)
    files.write_tensors(path, vars(svd))
    return svd


def _content_hash(W: Float[Tensor, "m n"]) -> str:
    digest = hashlib.sha256(f"{W.dtype} {tuple(W.shape)}".encode())
    digest.update(W.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
