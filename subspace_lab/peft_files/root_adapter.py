"""The adapter at the root of a Trainer's output folder: the final one, or the best.

`trainer.save_model()` writes it beside the checkpoints. It is often a copy of one of them (with
`load_best_model_at_end`, of the best); otherwise it is a further step of the training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from subspace_lab.errors import UserError
from subspace_lab.peft_files.configuration import CONFIG_FILE
from subspace_lab.peft_files.weights import find_weights, read_tensors, tensor_shapes

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class RootAdapter:
    """Where the root's adapter belongs among the checkpoints.

    Attributes:
        folder: the checkpoint that it is a copy of, or the root itself.
        step: that checkpoint's step, or the root's own.
        note: what a reader of the results has to know.
    """

    folder: Path
    step: int
    note: str


def find_root_adapter(path: Path, checkpoints: Mapping[int, Path]) -> RootAdapter | None:
    """Find the adapter that lies beside the checkpoints of a Trainer; None if there is none.

    Args:
        path: the Trainer's output folder.
        checkpoints: its checkpoints by step, in ascending order.
    """
    if not checkpoints or not (path / CONFIG_FILE).is_file() or find_weights(path) is None:
        return None
    where = f"the adapter at the root of {path.name}"
    for step, folder in sorted(checkpoints.items(), reverse=True):
        if _same_adapter(path, folder):
            return RootAdapter(folder, step, f"{where} is that of {folder.name}: the final one")
    last = max(checkpoints)
    step = _state(path).get("global_step", 0)
    if step > 0 and step not in checkpoints:
        return RootAdapter(path, step, f"{where} is the final one, of step {step}")
    step = _state(checkpoints[last]).get("max_steps", 0)
    if step > last:
        return RootAdapter(
            path, step, f"{where} is the final one, taken to be of step {step}, the last planned"
        )
    return RootAdapter(
        path,
        last + 1,
        f"{where} is the final one; its step is not recorded, {last + 1} stands for it",
    )


def _same_adapter(first: Path, second: Path) -> bool:
    """Tell whether two folders hold the same adapter, tensor by tensor."""
    files = [find_weights(folder) for folder in (first, second)]
    if None in files or _config(first) != _config(second):
        return False
    try:
        shapes = [tensor_shapes(file) for file in files if file is not None]
        return shapes[0] == shapes[1] and all(
            torch.equal(*(read_tensors(file, [key])[0] for file in files if file is not None))
            for key in shapes[0]
        )
    except UserError:  # a damaged file is named where it is opened
        return False


def _config(folder: Path) -> object:
    return _json(folder / CONFIG_FILE)


def _state(folder: Path) -> dict[str, int]:
    """Read the whole numbers of a trainer_state.json; empty where there is none."""
    state = _json(folder / STATE_FILE)
    fields = state if isinstance(state, dict) else {}
    return {name: value for name, value in fields.items() if isinstance(value, int)}


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
