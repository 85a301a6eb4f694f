"""The snapshots of a run: whole adapters, saved as PEFT folders `snapshots/step-NNNNNN`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from subspace_lab import files
from subspace_lab.adapters.modules import LoraModule
from subspace_lab.module_names import lora_key

Save = Callable[[nn.Module, Path], None]
"""Writes the adapter of a model into a folder."""


class Snapshots:
    """Saves the adapter of a model in training.

    Args:
        run: the run directory.
        adapter: name of the PEFT adapter.
        save: what writes a snapshot; None: PEFT's `save_pretrained`.
    """

    def __init__(self, run: Path, *, adapter: str, save: Save | None) -> None:
        self._folder = run / "snapshots"
        self._adapter = adapter
        self._write = save or self._save_pretrained

    def __contains__(self, step: int) -> bool:
        """Whether the adapter of a step is saved."""
        return self._path(step).is_dir()

    def save(self, model: nn.Module, step: int) -> None:
        """Save the adapter of a step."""
        with files.replacing(self._path(step)) as unfinished:
            self._write(model, unfinished)

    def initial_values(self, modules: Sequence[LoraModule]) -> dict[str, tuple[Tensor, Tensor]]:
        """Read (A, B) of each module at step 0."""
        values = {}
        with files.open_tensors(self._path(0) / "adapter_model.safetensors") as tensors:
            for module in modules:
                A, B = (tensors.get_tensor(lora_key(module.name, side)) for side in ("A", "B"))
                # A converted snapshot of a split base (PiSSA, MiLoRA) holds [A; A0] and [B, -B0].
                A0, B0 = A[: module.rank], B[:, : module.rank]
                values[module.name] = (A0.to(module.A), B0.to(module.B))
        return values

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"

    def _save_pretrained(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder, selected_adapters=[self._adapter])  # type: ignore[operator]
        # PEFT puts an adapter of another name than "default" into a folder of that name.
        named = folder / self._adapter
        for file in list(named.glob("*")):
            file.rename(folder / file.name)
        if named.is_dir():
            named.rmdir()
