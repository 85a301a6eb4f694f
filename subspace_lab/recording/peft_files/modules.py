"""Sort the tensors of an adapter into modules with factors, and what is left out, with reasons."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from subspace_lab.recording.factors import Kind
from subspace_lab.recording.names import base_name
from subspace_lab.recording.peft_files.configuration import AdapterConfig

Shape = tuple[int, ...]

_LORA_KEY = re.compile(r"(?P<module>.+)\.(?P<tensor>lora_\w+)(?:\.(?P<part>.+))?")
_KINDS: dict[int, Kind] = {2: "linear", 3: "conv1d", 4: "conv2d", 5: "conv3d"}


@dataclass(frozen=True)
class StoredModule:
    """Where one module's factors lie in the weights file, and what they are.

    Attributes:
        name: path of the module in the base model.
        m: rows of dW.
        n: columns of dW.
        r: rank directions.
        scaling: dW = scaling * B A (AdaLoRA: B diag(E) A).
        kind: see `Factors`.
        B_key: name of the tensor B in the file; likewise A_key.
        A_key: see B_key.
        E_key: AdaLoRA's diagonal.
        magnitude_key: DoRA's magnitude.
        note: what a reader of B A has to know besides.
    """

    name: str
    m: int
    n: int
    r: int
    scaling: float
    kind: Kind
    B_key: str
    A_key: str
    E_key: str | None
    magnitude_key: str | None
    note: str


class NotCoveredError(Exception):
    """A module's update is not scaling * B A, or the file does not tell; the message says why."""


def sort_tensors(
    shapes: Mapping[str, Shape], config: AdapterConfig
) -> tuple[list[StoredModule], list[tuple[str, str]]]:
    """Describe every module whose factors are stored, and name everything else.

    Args:
        shapes: the tensors of the weights file.
        config: the adapter's configuration.

    Returns:
        The modules in the file's order, and (module, reason) for whatever is left out.
    """
    grouped: dict[str, dict[str, str]] = defaultdict(dict)
    skipped: list[tuple[str, str]] = []
    for key in shapes:
        match = _LORA_KEY.fullmatch(base_name(key))
        if match is None:
            skipped.append(_no_lora_tensor(base_name(key)))
        else:
            part = "" if match["part"] in (None, "weight") else f".{match['part']}"
            grouped[match["module"]][match["tensor"] + part] = key

    modules = []
    for path, keys in grouped.items():
        name = path.replace(".base_layer", "")
        if keys.pop("lora_B.bias", None):
            reason = "lora_bias: the trained bias of lora_B is no part of the weight's update B A"
            skipped.append((name, reason))
        try:
            modules.append(_describe(path, name, keys, shapes, config))
        except NotCoveredError as reason:
            skipped.append((name, str(reason)))
    return modules, skipped


def _describe(
    path: str,
    name: str,
    keys: Mapping[str, str],
    shapes: Mapping[str, Shape],
    config: AdapterConfig,
) -> StoredModule:
    refusal = config.refusal()
    if refusal is not None:
        raise NotCoveredError(refusal)
    embedding = any(tensor.startswith("lora_embedding") for tensor in keys)
    A_name, B_name = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    expected = {A_name, B_name}
    expected |= {"lora_E"} if config.is_adalora else set()
    expected |= {"lora_magnitude_vector"} if config.use_dora else set()
    if keys.keys() != expected:
        raise NotCoveredError(
            f"the file holds {', '.join(sorted(keys))}, where this adapter's configuration "
            f"stands for {', '.join(sorted(expected))}"
        )

    A, B = shapes[keys[A_name]], shapes[keys[B_name]]
    if len(A) != len(B) or len(A) not in _KINDS or 0 in A[1:] + B[:1]:
        raise NotCoveredError(
            f"lora_A has the shape {A} and lora_B {B}: sharded weights, saved without gathering?"
        )
    r = A[0]
    if len(A) > 2 and B[1] != r:
        raise NotCoveredError("a convolution with groups: its update is no single product B A")
    if B[1:] != (r,) + (1,) * (len(B) - 2):
        raise NotCoveredError(f"lora_A {A} and lora_B {B} do not multiply")

    pattern_key = _pattern_key(path, name, config)
    if r != (configured := config.expected_rank(pattern_key)):
        raise NotCoveredError(
            f"rank {r} in the file, {configured} in the configuration, so the scaling is unknown"
            + " (target_parameters: a stack of expert matrices?)" * bool(config.parameters_of(name))
        )
    kind: Kind = "embedding" if embedding else _KINDS[len(A)]
    return StoredModule(
        name=name,
        m=B[0],
        n=math.prod(A[1:]),
        r=r,
        scaling=config.scaling(pattern_key, r),
        kind=kind,
        B_key=keys[B_name],
        A_key=keys[A_name],
        E_key=keys.get("lora_E"),
        magnitude_key=keys.get("lora_magnitude_vector"),
        note=config.note(kind),
    )


def _pattern_key(path: str, name: str, config: AdapterConfig) -> str:
    """Give the name that PEFT matched `rank_pattern` and `alpha_pattern` with."""
    parameters = config.parameters_of(name)
    if len(parameters) > 1 or path.endswith(".base_layer"):
        raise NotCoveredError(
            "target_parameters: several parameters of the module are adapted, and the file does "
            "not tell which by which factors"
        )
    if parameters:
        return f"{name}.{parameters.pop()}"
    # MultiheadAttention is adapted as a whole, its base_layer.out_proj with it.
    return path.partition(".base_layer.")[0]


def _no_lora_tensor(key: str) -> tuple[str, str]:
    """Name the module of a tensor that is no part of a low-rank update, and what it is."""
    module, _, tensor = key.rpartition(".")
    if module.endswith(".token_adapter"):
        return module.removesuffix(".token_adapter"), "trainable tokens: single rows, trained whole"
    if module.endswith(".base_layer") and tensor == "weight":
        return module.removesuffix(".base_layer"), "a stored copy of the base weight, no update"
    if tensor == "bias":
        return module.removesuffix(".base_layer"), "a trained bias: no matrix"
    return module, f"{tensor} is stored whole (modules_to_save, or a resized embedding)"
