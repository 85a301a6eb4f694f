"""Triplets of a base weight come from the cache the second time, and only those of that weight."""

from __future__ import annotations

import torch

from subspace_lab.runs import base_svd_cache
from subspace_lab.runs.base_svd_cache import cached_base_svd


def test_base_factorization_is_computed_once(tmp_path, monkeypatch):
    W0 = torch.randn(40, 30, dtype=torch.bfloat16)
    first = cached_base_svd(W0, rank=4, cache=tmp_path / "cache")
    monkeypatch.setattr(base_svd_cache, "base_svd", None)  # any further call would fail
    second = cached_base_svd(W0.clone(), rank=4, cache=tmp_path / "cache")
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(second, name))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_another_weight_rank_or_type_is_another_entry(tmp_path):
    W0 = torch.randn(12, 10)
    changed = W0.clone()
    changed[3, 4] = torch.nextafter(changed[3, 4], torch.tensor(9.0))
    for weight in (W0, changed, W0.double(), W0.reshape(10, 12)):
        cached_base_svd(weight, rank=3, cache=tmp_path)
    cached_base_svd(W0, rank=2, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
