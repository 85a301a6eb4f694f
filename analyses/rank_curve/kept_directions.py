"""A trained adapter with some of its rank directions left out, in either of two gauges.

The update of a module is a sum of r directions, B A = sum_i b_i a_i^T, and so is that of any other
factorization of the same product. Two are of interest: the trained one, whose directions a rank
mask multiplies, and the singular one, U S V^T, whose first k directions are the best approximation
of rank k (Eckart and Young 1936). PiSSA and MiLoRA subtract their start, which a snapshot holds in
trailing directions: those stay whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from subspace_lab.adapters.modules import LoraModule, lora_modules
from subspace_lab.linalg.spectra import singular_vectors

Gauge = Literal["trained", "singular"]


class KeptDirections:
    """Leaves out rank directions of a model by its weights alone; nothing is rescaled.

    Args:
        model: a PEFT model.
        ranks: the trained rank r of each module whose directions may be left out.
    """

    def __init__(self, model: nn.Module, ranks: Mapping[str, int]) -> None:
        modules = {module.name: module for module in lora_modules(model)}
        self._modules: dict[str, LoraModule] = {name: modules[name] for name in ranks}
        trained = {
            name: (module.B[:, : ranks[name]].detach().clone(), module.A[: ranks[name]].clone())
            for name, module in self._modules.items()
        }
        singular = {name: _singular(B, A.detach()) for name, (B, A) in trained.items()}
        self._factors = {"trained": trained, "singular": singular}

    @contextlib.contextmanager
    def keeping(self, gates: Mapping[str, Tensor], *, gauge: Gauge = "trained") -> Iterator[None]:
        """Multiply the directions of modules by gates, (r,) each, and put them back at the end."""
        self._write(gates, gauge)
        try:
            yield
        finally:
            self._write({name: torch.ones(len(gate)) for name, gate in gates.items()}, "trained")

    @torch.no_grad()
    def _write(self, gates: Mapping[str, Tensor], gauge: Gauge) -> None:
        for name, gate in gates.items():
            module, (B, A) = self._modules[name], self._factors[gauge][name]
            module.A[: len(gate)] = gate.to(A)[:, None] * A
            module.B[:, : len(gate)] = B


def _singular(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Factorize B A as (U S) V^T, (m, r) and (r, n), of the same dtype."""
    svd = singular_vectors(B, A)
    US, Vh = B.new_zeros(B.shape), A.new_zeros(A.shape)
    US[:, : len(svd.S)], Vh[: len(svd.S)] = (svd.U * svd.S).to(B), svd.Vh.to(A)
    return US, Vh
