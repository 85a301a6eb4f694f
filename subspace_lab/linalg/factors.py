"""The two factors of a low-rank update, and the matrix view of the weight that they update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Kind = Literal["linear", "embedding", "conv1d", "conv2d", "conv3d"]


@dataclass(frozen=True, eq=False)
class Factors:
    """One module's update dW = scaling * B A, in (out_features, in_features) orientation.

    A linear map takes x (n,) to dW x (m,), whatever way round its weight is stored. What m and n
    are, and how the stored weight becomes an (m, n) matrix (`weight_matrix`):

    | kind | m | n | stored weight |
    |---|---|---|---|
    | linear | out_features | in_features | (m, n); (n, m) in `Conv1D` and with `fan_in_fan_out` |
    | embedding | embedding_dim | num_embeddings | (n, m): a linear map of one-hot vectors |
    | conv1d, conv2d, conv3d | out_channels | in_channels times kernel size | (m, in, *kernel) |

    `Conv1D`, the transposed linear layer of GPT-2, is linear; conv1d is `torch.nn.Conv1d`.

    Attributes:
        module: path of the module in the base model, such as `model.layers.0.self_attn.q_proj`.
        B: (m, r).
        A: (r, n).
        scaling: the scalar before the product, such as alpha / r.
        kind: what the module is.

    Raises:
        ValueError: if the shapes do not multiply.
    """

    module: str
    B: Float[Tensor, "m r"]
    A: Float[Tensor, "r n"]
    scaling: float
    kind: Kind = "linear"

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ValueError(
                f"{self.module}: B {tuple(self.B.shape)} and A {tuple(self.A.shape)} are not "
                "(m, r) and (r, n)"
            )

    @property
    def rank(self) -> int:
        """The number r of rank directions, which bounds the rank of dW."""
        return int(self.A.shape[0])

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite; training that diverged leaves nan."""
        return bool(self.A.isfinite().all() and self.B.isfinite().all())


def weight_matrix(
    weight: Float[Tensor, "*leading last"], *, kind: Kind = "linear", fan_in_fan_out: bool = False
) -> Float[Tensor, "m n"]:
    """View a stored weight as the (m, n) matrix that `Factors` of that kind update.

    Args:
        weight: the module's `weight`, as the base model stores it.
        kind: what the module is.
        fan_in_fan_out: the weight of a linear layer is stored as (in, out). True for
            `transformers.pytorch_utils.Conv1D`; the adapter's own `fan_in_fan_out` is one flag
            for all its modules, and wrong for some where it adapts both sorts of layer.

    Examples:
        >>> import torch
        >>> weight_matrix(torch.zeros(100, 8), kind="embedding").shape
        torch.Size([8, 100])
        >>> weight_matrix(torch.zeros(6, 4, 3, 3), kind="conv2d").shape
        torch.Size([6, 36])
    """
    if kind == "embedding" or (kind == "linear" and fan_in_fan_out):
        return weight.T
    return weight.flatten(1)
