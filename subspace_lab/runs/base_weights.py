"""Single weights of a run's base model, read from its safetensors without loading the model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import snapshot_download
from torch import Tensor

from subspace_lab import files, models
from subspace_lab.errors import UserError
from subspace_lab.linalg.factors import Factors, weight_matrix
from subspace_lab.runs.conv1d import CONV1D_NAMES, is_conv1d
from subspace_lab.runs.dequantized import companion, dequantized
from subspace_lab.runs.run import Run


class UnreadableWeightError(UserError):
    """The base has no weight of a module, or it could only be guessed; the message says why."""


class BaseWeights:
    """The weights of a base model.

    Args:
        folder: a transformers folder with `*.safetensors`.
        remark: what has to be said where results are shown, such as that the base is quantized.

    Attributes:
        has_conv1d: whether some weights are known to be stored as (in, out).

    Raises:
        UserError: if the folder has no safetensors.
    """

    def __init__(self, folder: Path, *, remark: str = "") -> None:
        self.folder, self.remark, self.has_conv1d = folder, remark, False
        self._file_of: dict[str, Path] = {}
        self._siblings: dict[str, set[str]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with files.open_tensors(path) as tensors:
                self._file_of |= dict.fromkeys(tensors.keys(), path)
        for name in self._file_of:
            module, _, tensor = name.rpartition(".")
            self._siblings.setdefault(module, set()).add(tensor)
        if not self._file_of:
            raise UserError(f"the base model's folder {folder} holds no safetensors")

    def find(self, module: str) -> str | None:
        """Find the name of a module's weight; None unless exactly one fits."""
        wanted = f"{module}.weight"
        if wanted in self._file_of:
            return wanted
        # A checkpoint may leave out, or add, the prefix of the model without its head.
        names = [
            name
            for name in self._file_of
            if wanted.endswith(f".{name}") or name.endswith(f".{wanted}")
        ]
        return names[0] if len(names) == 1 else None

    def shape(self, module: str) -> tuple[int, ...] | None:
        """Give the shape of a module's weight as it is stored; None if there is none."""
        return None if (name := self.find(module)) is None else self._header(name)[1]

    def codes(self, module: str) -> str | None:
        """Name the type of codes that a module's weight is stored as; None for plain numbers.

        Raises:
            UnreadableWeightError: if there is no single weight, or it cannot be dequantized.
        """
        name = self.find(module)
        if name is None:
            raise UnreadableWeightError(
                f"the base has no single weight {module}.weight{self._quantization()}"
            )
        dtype, _ = self._header(name)
        return dtype if self._companion(name, dtype) else None

    def matrix(self, factors: Factors) -> Tensor:
        """Read the weight (m, n) that the given factors update; codes are dequantized.

        Raises:
            UnreadableWeightError: if there is none that can be read without a guess.
            UserError: if it has another shape.
        """
        quantized = self.codes(factors.module) is not None
        name = self.find(factors.module)
        assert name is not None  # codes() raises otherwise
        with files.open_tensors(self._file_of[name]) as tensors:
            stored: Tensor = tensors.get_tensor(name)
        m, n = len(factors.B), factors.A.shape[1]
        transposed = factors.kind == "linear" and self._is_transposed(
            factors.module, tuple(stored.shape), (m, n), quantized=quantized
        )
        if quantized:
            stored = self._dequantized(name, stored)
        weight: Tensor = weight_matrix(stored, kind=factors.kind, fan_in_fan_out=transposed)
        if weight.shape != (m, n):
            raise UserError(
                f"{name} in {self.folder} is {tuple(weight.shape)}, but the adapter updates a "
                f"{m} x {n} matrix: it belongs to another base"
            )
        return weight

    def _is_transposed(
        self, module: str, shape: tuple[int, ...], wanted: tuple[int, int], *, quantized: bool
    ) -> bool:
        """Tell whether a linear layer's weight is stored as (in, out)."""
        m, n = wanted
        if m != n:
            return shape == (n, m)
        if not self.has_conv1d and module.rpartition(".")[2] not in CONV1D_NAMES:
            return False
        conv1d = None if quantized else is_conv1d(module, self.folder)
        if conv1d is None:
            raise UnreadableWeightError(
                f"the base stores some weights as (in, out), and its config.json does not tell "
                f"whether the square {module}.weight is one of them"
            )
        return conv1d

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Read the type and shape of a stored tensor."""
        with files.open_tensors(self._file_of[name]) as tensors:
            stored = tensors.get_slice(name)
            return str(stored.get_dtype()), tuple(stored.get_shape())

    def _companion(self, name: str, dtype: str) -> str | None:
        try:
            return companion(dtype, self._siblings[name.rpartition(".")[0]])
        except UserError as error:
            raise UnreadableWeightError(
                f"{name} of the base {self.folder} is quantized: {error}{self._quantization()}"
            ) from error

    def _dequantized(self, name: str, codes: Tensor) -> Tensor:
        scale_name = self._companion(name, self._header(name)[0])
        assert scale_name is not None
        full = name.removesuffix("weight") + scale_name
        with files.open_tensors(self._file_of[full]) as tensors:
            scale = tensors.get_tensor(full)
        block = self._config().get("quantization_config", {}).get("weight_block_size")
        try:
            return dequantized(codes, scale, name=scale_name, block=block)
        except UserError as error:
            raise UnreadableWeightError(f"{name} of the base {self.folder}: {error}") from error

    def _quantization(self) -> str:
        """Say how the base is quantized, and what to do; empty if it is not, by its config."""
        quantization = self._config().get("quantization_config")
        if not quantization:
            return ""
        method = quantization.get("quant_method", "unnamed method")
        return f" (a quantized base, {method}: name the model before quantization with --base)"

    def _config(self) -> dict[str, Any]:
        file = self.folder / "config.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def open_base(run: Run, *, name: str | None = None) -> BaseWeights:
    """Open the base of a run: the one it names, or `name`.

    Raises:
        UserError: if no base is named or available, or scaling * B A is not an update of it.
    """
    adapter = run.snapshots[max(run.snapshots)]
    if notes := [note for note in adapter.modules["note"].unique() if "not converted" in note]:
        raise UserError(str(notes[0]))
    name = name or run.config.get("base") or adapter.config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{run.path} does not say which base model it belongs to")
    base = models.find_base(str(name))
    remark = run.description.get("provenance", {}).get("base_remark") or base.remark
    weights = BaseWeights(_folder(base.location), remark=remark)
    flag = bool(adapter.config.get("fan_in_fan_out", False))
    weights.has_conv1d = flag or _stores_transposed(weights, adapter.modules)
    return weights


def find_base(
    run: Run, modules: Iterable[str], *, name: str | None = None
) -> tuple[BaseWeights | None, str]:
    """Open the base of a run if it is available, and give what has to be said about it.

    Raises:
        UserError: if `name` is given, and that base is not available or has none of the weights.
    """
    try:
        weights = open_base(run, name=name)
        codes, reasons = set[str](), list[UserError]()
        for module in modules:
            try:
                codes.add(weights.codes(module) or "")
            except UnreadableWeightError as error:
                reasons.append(error)
        if not codes:
            raise UserError(
                f"the base has none of the modules' weights that can be read: {reasons[0]}"
            )
    except UserError as error:
        if name:
            raise
        return None, f"update only: {error}"
    dequantized = ", ".join(sorted(codes - {""}))
    remarks = [weights.remark, f"dequantized from {dequantized} codes" if dequantized else ""]
    return weights, "; ".join(filter(None, remarks))


def base_weight(weights: BaseWeights | None, factors: Factors) -> tuple[Tensor | None, str]:
    """Read the weight that factors update; without one, say why if the base lacks only this one."""
    if weights is None:
        return None, ""
    try:
        return weights.matrix(factors), ""
    except UnreadableWeightError as error:
        return None, f"update only: {error}"


def _stores_transposed(weights: BaseWeights, modules: pd.DataFrame) -> bool:
    """Tell whether the shape of some linear weight shows that it is stored as (in, out)."""
    linear = modules[(modules["kind"] == "linear") & (modules["m"] != modules["n"])]
    sizes = zip(linear["module"], linear["n"], linear["m"], strict=True)
    return any(weights.shape(module) == (n, m) for module, n, m in sizes)


def _folder(location: str) -> Path:
    if Path(location).is_dir():
        return Path(location)
    try:
        return Path(snapshot_download(location, allow_patterns=["*.safetensors", "config.json"]))
    except Exception as error:  # each layer below (cache, HTTP, proxy) has errors of its own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the base model {location} is not available ({reason})") from error
