"""The gates that were observed at some layers during training, as a run keeps them.

`gates.safetensors` holds, for each observed module NAME, `NAME/steps`, `NAME/gates` and
`NAME/rounding`; `recording.gate_recorder` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from subspace_lab import files

GATES_FILE = "gates.safetensors"


@dataclass(frozen=True)
class Gates:
    """The gates of one module.

    Attributes:
        module: its name.
        steps: (calls,) the optimizer step that each forward pass belonged to.
        gates: (calls, rows, tokens, r); nan where A x is 0 or there is no such row or token.
        rounding: relative rounding error of the layer's outputs (machine epsilon of their dtype).
    """

    module: str
    steps: Tensor
    gates: Tensor
    rounding: float


def read_gates(folder: Path) -> list[Gates]:
    """Read the observed gates of a run; an empty list where none were observed."""
    if not (folder / GATES_FILE).is_file():
        return []
    with files.open_tensors(folder / GATES_FILE) as tensors:
        keys = set(tensors.keys())
        observed = []
        for name in sorted(key.removesuffix("/gates") for key in keys if key.endswith("/gates")):
            rounding = torch.finfo(torch.bfloat16).eps  # of older files, which do not say
            if f"{name}/rounding" in keys:
                rounding = float(tensors.get_tensor(f"{name}/rounding"))
            steps, gates = (tensors.get_tensor(f"{name}/{part}") for part in ("steps", "gates"))
            observed.append(Gates(name, steps, gates, rounding))
        return observed
