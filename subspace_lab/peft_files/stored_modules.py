"""Sort the tensors of an adapter into modules with factors, and what is left out, with reasons."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from subspace_lab.linalg.factors import Kind
from subspace_lab.module_names import base_name
from subspace_lab.peft_files.configuration import AdapterConfig

Shape = tuple[int, ...]

# PEFT drops the adapter's name when it saves (lora_A.weight); a state_dict keeps it
# (lora_A.default.weight), and a tensor that is not a layer's has no part (lora_E).
_LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?P<tensor>lora_\w+)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<part>weight|bias))?"
)
_NEMO_KEY = re.compile(r"(?P<module>.+)\.adapter\.(?P<tensor>linear_(?:in|out))\.\w+")
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

    @property
    def keys(self) -> tuple[str | None, ...]:
        """The names of the module's tensors in the file."""
        return self.B_key, self.A_key, self.E_key, self.magnitude_key


class NotCoveredError(Exception):
    """A module's update is not scaling * B A, or the file does not tell; the message says why."""


@dataclass(frozen=True)
class LeftOut:
    """What the weights file holds besides modules with factors.

    Attributes:
        module: the module that it belongs to.
        reason: why it is not read.
        parameters: how many trained numbers the file holds of it.
    """

    module: str
    reason: str
    parameters: int


def sort_tensors(
    shapes: Mapping[str, Shape], config: AdapterConfig
) -> tuple[list[StoredModule], list[LeftOut]]:
    """Describe every module whose factors are stored, and name everything else.

    Args:
        shapes: the tensors of the weights file.
        config: the adapter's configuration.

    Returns:
        The modules in the file's order, and whatever is left out.
    """
    grouped: dict[str, dict[str, str]] = defaultdict(dict)
    left_out: list[LeftOut] = []
    adapters: set[str] = set()
    for key, shape in shapes.items():
        name = base_name(key)
        match = _LORA_KEY.fullmatch(name)
        if match is None:
            left_out.append(_not_lora(name, shape, config))
            continue
        adapters.add(match["adapter"] or "")
        part = "" if match["part"] in (None, "weight") else f".{match['part']}"
        grouped[match["module"]][match["tensor"] + part] = key

    modules = []
    for path, keys in grouped.items():
        name = path.replace(".base_layer", "")
        if bias := keys.pop("lora_B.bias", None):
            reason = "lora_bias: the trained bias of lora_B is not part of the update B A"
            left_out.append(LeftOut(name, reason, math.prod(shapes[bias])))
        try:
            if len(adapters) > 1:
                named = ", ".join(sorted(adapters)).removeprefix(", ")
                raise NotCoveredError(
                    f"the file holds several adapters or parts of one, named {named}: "
                    "save one adapter with save_pretrained"
                )
            modules.append(_describe(path, name, keys, shapes, config))
        except NotCoveredError as reason:
            left_out.append(LeftOut(name, str(reason), count(shapes, keys.values())))
    return modules, left_out


def count(shapes: Mapping[str, Shape], keys: Iterable[str | None]) -> int:
    """Count the numbers in the named tensors (None: no tensor)."""
    return sum(math.prod(shapes[key]) for key in keys if key is not None)


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
    if 0 in A[1:] + B[:1]:
        raise NotCoveredError(
            "its tensors are empty: sharded weights (DeepSpeed ZeRO-3, FSDP), which were saved "
            "without gathering them"
        )
    if len(A) != len(B) or len(A) not in _KINDS:
        raise NotCoveredError(f"lora_A {A} and lora_B {B} are not two factors of one layer")
    r = A[0]
    if len(A) > 2 and B[1] != r:
        raise NotCoveredError("a convolution with groups: its update is not a single product B A")
    if B[1:] != (r,) + (1,) * (len(B) - 2):
        raise NotCoveredError(f"lora_A {A} and lora_B {B} do not multiply")

    pattern_key = _pattern_key(path, name, config)
    if r != (configured := config.expected_rank(pattern_key)):
        if config.parameters_of(name) and r % configured == 0:
            raise NotCoveredError(
                f"target_parameters: a stack of {r // configured} expert matrices, whose factors "
                "are stored as one pair and are not read"
            )
        raise NotCoveredError(
            f"rank {r} in the file, {configured} in the configuration, so the scaling is unknown"
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
    """Return the name that PEFT matched `rank_pattern` and `alpha_pattern` with."""
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


def _not_lora(key: str, shape: Shape, config: AdapterConfig) -> LeftOut:
    """Name the module of a tensor that is not part of a low-rank update, and what it is."""
    module, _, tensor = key.rpartition(".")
    parameters = math.prod(shape)
    if nemo := _NEMO_KEY.fullmatch(key):
        reason = (
            f"{nemo['tensor']} is a name of NVIDIA NeMo's: export the adapter in the format of "
            "Hugging Face PEFT"
        )
        return LeftOut(nemo["module"], reason, parameters)
    if module.endswith(".token_adapter"):
        reason = "trainable tokens: single rows, trained whole"
        return LeftOut(module.removesuffix(".token_adapter"), reason, parameters)
    if module.endswith(".base_layer") and tensor == "weight":
        reason = "a stored copy of the base weight, not an update"
        return LeftOut(module.removesuffix(".base_layer"), reason, 0)
    if tensor == "bias":
        return LeftOut(
            module.removesuffix(".base_layer"), "a trained bias: not a matrix", parameters
        )
    if config.stores_whole(module):
        reason = f"{tensor} is stored whole (modules_to_save, or a resized embedding)"
        return LeftOut(module, reason, parameters)
    return LeftOut(module, f"{tensor} is not a tensor that PEFT's LoRA stores", parameters)
