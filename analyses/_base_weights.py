"""Single weights of a run's base model, read from its safetensors without loading the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from subspace_lab.recording.factors import Factors
    from subspace_lab.recording.run import Run


class BaseWeights:
    """The weights of a base model.

    Args:
        folder: a transformers folder with `*.safetensors`.
        fan_in_fan_out: whether linear weights are stored as (in, out).
        remark: what has to be said where results are shown, such as that the base is quantised.

    Raises:
        UserError: if the folder has no safetensors.
    """

    def __init__(self, folder: Path, *, fan_in_fan_out: bool = False, remark: str = "") -> None:
        from subspace_lab.recording import files

        self.folder, self.remark, self._fan_in_fan_out = folder, remark, fan_in_fan_out
        self._file_of: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with files.open_tensors(path) as tensors:
                self._file_of |= dict.fromkeys(tensors.keys(), path)
        if not self._file_of:
            raise UserError(f"the base model's folder {folder} holds no safetensors")

    def find(self, module: str) -> str | None:
        """Find the name of a module's weight; None unless exactly one fits."""
        wanted = f"{module}.weight"
        # A checkpoint may leave out, or add, the prefix of the model without its head.
        found = [
            name
            for name in self._file_of
            if name == wanted or wanted.endswith(f".{name}") or name.endswith(f".{wanted}")
        ]
        return found[0] if len(found) == 1 else None

    def matrix(self, factors: Factors) -> Tensor | None:
        """Read the weight (m, n) that the given factors update; None where the base has none.

        Raises:
            UserError: if it has another shape.
        """
        from subspace_lab.recording import files
        from subspace_lab.recording.factors import weight_matrix

        name = self.find(factors.module)
        if name is None:
            return None
        with files.open_tensors(self._file_of[name]) as tensors:
            stored: Tensor = tensors.get_tensor(name)
        weight: Tensor = weight_matrix(
            stored, kind=factors.kind, fan_in_fan_out=self._fan_in_fan_out
        )
        if weight.shape != (len(factors.B), factors.A.shape[1]):
            raise UserError(
                f"{name} in {self.folder} is {tuple(weight.shape)}, but the adapter updates a "
                f"{len(factors.B)} x {factors.A.shape[1]} matrix: it belongs to another base"
            )
        return weight


def open_base(run: Run, *, name: str | None = None) -> BaseWeights:
    """Open the base of a run: the one it names, or `name`.

    Raises:
        UserError: if no base is named, it cannot be had, or scaling * B A is no update of it.
    """
    from subspace_lab import models

    adapter = run.snapshots[max(run.snapshots)]
    if notes := [note for note in adapter.modules["note"].unique() if "not converted" in note]:
        raise UserError(str(notes[0]))
    name = name or run.config.get("base") or adapter.config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{run.path} does not say which base model it belongs to")
    base = models.find_base(str(name))
    return BaseWeights(
        _folder(base.location),
        fan_in_fan_out=bool(adapter.config.get("fan_in_fan_out", False)),
        remark=run.description.get("provenance", {}).get("base_remark") or base.remark,
    )


def _folder(location: str) -> Path:
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(location, allow_patterns=["*.safetensors"]))
    except Exception as error:  # each layer below (cache, HTTP, proxy) has errors of its own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the base model {location} cannot be had ({reason})") from error
