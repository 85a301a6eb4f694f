"""GaLore: whole weights under AdamW whose moments live in a low-rank projection of the gradient.

For a weight W (m, n) with gradient G, GaLore (Zhao et al., 2024, arXiv 2403.03507, Algorithm 2)
keeps an orthonormal frame P of the r leading singular directions of a gradient, and steps by

    m >= n:  P (n, r), right singular vectors,  dW = -lr scale Adam(G P) P^T
    m < n:   P (m, r), left singular vectors,   dW = -lr scale P Adam(P^T G).

P is drawn anew from the current gradient at the steps 1, K + 1, 2 K + 1, ... A LoRA's A plays the
part of P^T for the row space, and DropLoRA's mask chooses another part of A at each step: this is
what their "dynamic subspace" was modeled on. The optimizer is that of the authors (`galore_torch`),
as transformers builds it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subspace_lab.errors import UserError


class Projection(NamedTuple):
    """The frame onto which a weight's gradient is projected.

    Attributes:
        side: `row`, where P spans row directions (n, r), or `column` for (m, r).
        frame: P, with orthonormal columns.
    """

    side: Literal["row", "column"]
    frame: Float[Tensor, "d r"]


def galore_arguments(
    targets: Sequence[str], *, rank: int, refresh_every: int, scale: float
) -> dict[str, Any]:
    """Give the fields of `TrainingArguments` that train `targets` by GaLore.

    Args:
        targets: last path components of the linear layers.
        rank: r, directions of each gradient that are kept.
        refresh_every: K, steps between two frames.
        scale: factor on the step.

    Raises:
        UserError: if `galore_torch` is not installed.
    """
    if importlib.util.find_spec("galore_torch") is None:
        raise UserError(
            '`method` galore needs galore-torch: run `pip install "subspace_lab[galore]"`'
        )
    from galore_torch.galore_projector import GaLoreProjector

    # A checkpoint's optimizer state holds the projectors themselves.
    torch.serialization.add_safe_globals([GaLoreProjector])
    names = "|".join(map(re.escape, targets))
    return {
        "optim": "galore_adamw",
        "optim_target_modules": rf"(.*\.)?({names})",
        "optim_args": f"rank={rank},update_proj_gap={refresh_every},scale={scale}",
    }


def projections(model: nn.Module, optimizer: Any) -> dict[str, Projection]:
    """Read the current projection frame of each projected weight, by the name of its layer.

    Args:
        model: the model that `optimizer` trains.
        optimizer: a `GaLoreAdamW` that has taken a step, as it is or wrapped by accelerate.
    """
    frames = {}
    for name, parameter in model.named_parameters():
        projector = optimizer.state.get(parameter, {}).get("projector")
        if projector is None:
            continue
        m, n = parameter.shape
        P = projector.ortho_matrix
        frames[name.removesuffix(".weight")] = (
            Projection("row", P.mT) if m >= n else Projection("column", P)
        )
    return frames
