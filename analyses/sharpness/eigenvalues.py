"""The largest eigenvalue of a Hessian, from Hessian-vector products.

The gradient is computed once with its graph, g = dL/dw for all weights w together. Each product
with a block of the Hessian is then one backward pass through that graph, to the block's weights
only (Pearlmutter 1994):

    H v = d(g^T v)/dw.

ARPACK's implicitly restarted Lanczos iteration (SciPy's `eigsh`) needs such products alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

TOLERANCE = 1e-3
"""Relative accuracy asked of ARPACK; a product in fp32 rounds at some 1e-6."""
LANCZOS_VECTORS = 8
"""ARPACK looks at its accuracy after so many products; lambda_max stands out, so that few do."""


@dataclass(frozen=True)
class LargestEigenvalue:
    """The largest eigenvalue of a Hessian, with the evidence for it.

    Attributes:
        sharpness: lambda_max.
        residual: ||H v - lambda v|| / |lambda| of its eigenvector v.
        products: Hessian-vector products that were computed.
        weights: how many there are.
    """

    sharpness: float
    residual: float
    products: int
    weights: int


class HessianBlock:
    """The Hessian of a loss in some of its weights, or in their leading rows and columns.

    Args:
        gradients: dL/dw of each weight, with their graph.
        weights: the weights.
        shapes: the leading part of each weight that counts, such as (r, n) of (2 r, n).
    """

    def __init__(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        shapes: Sequence[tuple[int, int]],
    ) -> None:
        self._gradients, self._weights, self._shapes = gradients, weights, shapes
        self._counts = [rows * columns for rows, columns in shapes]
        self.size = sum(self._counts)
        self.products = 0

    def product(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiply the block by a vector (size,)."""
        pieces = torch.from_numpy(np.ravel(vector)).split(self._counts)
        directions = [torch.zeros_like(weight) for weight in self._weights]
        for whole, piece, (rows, columns) in zip(directions, pieces, self._shapes, strict=True):
            whole[:rows, :columns] = piece.view(rows, columns)
        products = torch.autograd.grad(
            self._gradients,
            self._weights,
            directions,
            retain_graph=True,
            materialize_grads=True,
        )
        self.products += 1
        parts = [
            whole[:rows, :columns].flatten()
            for whole, (rows, columns) in zip(products, self._shapes, strict=True)
        ]
        return torch.cat(parts).detach().cpu().double().numpy()

    def largest_eigenvalue(self, *, seed: int) -> LargestEigenvalue:
        """Compute lambda_max by Lanczos, from a random start."""
        start = np.random.default_rng(seed).standard_normal(self.size)
        if not self.product(start).any():  # a Hessian of zero, which ARPACK refuses
            return LargestEigenvalue(0.0, 0.0, self.products, self.size)
        operator = LinearOperator((self.size, self.size), matvec=self.product, dtype=np.float64)
        (value,), vectors = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start,
            ncv=min(LANCZOS_VECTORS, self.size),
            tol=TOLERANCE,
        )
        vector = vectors[:, 0]
        residual = np.linalg.norm(self.product(vector) - value * vector) / abs(value)
        return LargestEigenvalue(float(value), float(residual), self.products, self.size)
