"""LoRA files of image models, without a configuration: kohya's, LyCORIS's and diffusers'.

    LoraFile(Path("style.safetensors")).modules

One safetensors file holds factors under names of its own, with the scaling beside them:

| written by | A (r, n) | B (m, r) | scaling |
|---|---|---|---|
| kohya's sd-scripts, LyCORIS (LoRA, LoCon) | `NAME.lora_down.weight` | `NAME.lora_up.weight` | `NAME.alpha` / r |
| diffusers (PEFT) | `PATH.lora_A.weight` | `PATH.lora_B.weight` | `PATH.alpha` / r, or as the file's `lora_adapter_metadata` says |
| diffusers before 0.22 | `PATH.lora.down.weight`, `PATH.processor.to_q_lora.down.weight` | `....up.weight` | `PATH.alpha` / r |

Without an alpha the scaling is 1, as their own loaders have it. LyCORIS's rank-stabilized files
hold alpha sqrt(r), so that alpha / r is their scaling as well. A convolution's factors are
flattened. What else a file holds (LoHa, LoKr, Tucker's `lora_mid`, ...) is named in `skipped`.

Module names stay as they are in the file: kohya writes underscores for dots, which the name alone
does not tell apart.
"""  # noqa: E501 (a table)

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from subspace_lab.errors import UserError
from subspace_lab.linalg.factors import Kind
from subspace_lab.module_names import layer_and_projection
from subspace_lab.module_table import module_table
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.peft_files.configuration import AdapterConfig
from subspace_lab.peft_files.stored_modules import LeftOut, Shape, StoredModule, count
from subspace_lab.peft_files.weights import read_tensors, tensor_shapes

_PARTS = {
    "A": r"\.lora_down\.weight|\.lora_A\.weight|\.lora\.down\.weight|_lora\.down\.weight"
    r"|\.lora_linear_layer\.down\.weight",
    "B": r"\.lora_up\.weight|\.lora_B\.weight|\.lora\.up\.weight|_lora\.up\.weight"
    r"|\.lora_linear_layer\.up\.weight",
    "alpha": r"\.alpha",
    "magnitude": r"\.dora_scale|\.lora_magnitude_vector",
    "mid": r"\.lora_mid\.weight",
}
_KEY = re.compile(
    "(?P<module>.+?)(?:" + "|".join(f"(?P<{part}>{end})" for part, end in _PARTS.items()) + ")"
)
_KINDS: dict[int, Kind] = {2: "linear", 3: "conv1d", 4: "conv2d", 5: "conv3d"}
_KOHYA_LAYER = re.compile(r"_(?:layers?|h|(?:double|single|joint)_blocks)_(\d+)_")
METADATA = "lora_adapter_metadata"


class LoraFile(AdapterFolder):
    """One LoRA file of an image model, read as an `AdapterFolder` is.

    Args:
        path: the safetensors file.

    Raises:
        UserError: if the file cannot be read, or holds no LoRA.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._weights = self.path
        self.config: dict[str, Any] = {}
        shapes = tensor_shapes(self.path)
        keys, other = _sorted(shapes)
        configurations = _configurations(self.path)
        stored: list[StoredModule] = []
        skipped = [LeftOut(key, _reason(key), math.prod(shapes[key])) for key in other]
        for name, parts in keys.items():
            reason = _why_not(parts, shapes)
            if reason is None:
                stored.append(self._describe(name, parts, shapes, configurations))
            else:
                skipped.append(LeftOut(name, reason, count(shapes, parts.values())))
        if not stored:
            raise UserError(
                f"{self.path} holds no LoRA of kohya's, LyCORIS's or diffusers' names"
                + (f" ({skipped[0].reason})" if skipped else "")
            )
        self._stored = {module.name: module for module in stored}
        self.skipped = pd.DataFrame(skipped, columns=["module", "reason", "parameters"])
        self.parameters = count(shapes, (key for module in stored for key in module.keys))
        table = module_table((m.name, m.m, m.n, m.r, m.scaling) for m in stored)
        places = [_layer_and_projection(name) for name in table["module"]]
        self.modules = table.assign(
            layer=[layer for layer, _ in places],
            projection=[projection for _, projection in places],
            kind=[m.kind for m in stored],
            variant=["dora" if m.magnitude_key else "lora" for m in stored],
            note=[m.note for m in stored],
        )

    def _describe(
        self,
        name: str,
        parts: Mapping[str, str],
        shapes: Mapping[str, Shape],
        configurations: Mapping[str, AdapterConfig],
    ) -> StoredModule:
        A, B = shapes[parts["A"]], shapes[parts["B"]]
        component, _, inner = name.partition(".")
        scaling = 1.0
        if "alpha" in parts:
            scaling = float(read_tensors(self.path, [parts["alpha"]])[0]) / A[0]
        elif component in configurations:
            scaling = configurations[component].scaling(inner, A[0])
        magnitude = parts.get("magnitude")
        return StoredModule(
            name=name,
            m=B[0],
            n=math.prod(A[1:]),
            r=A[0],
            scaling=scaling,
            kind=_KINDS[len(A)],
            B_key=parts["B"],
            A_key=parts["A"],
            E_key=None,
            magnitude_key=magnitude,
            note="B A is DoRA's update of the direction only" if magnitude else "",
        )


def _sorted(shapes: Mapping[str, Shape]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Sort the keys into the parts of each module, and those of no LoRA."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    other = []
    for key in shapes:
        match = _KEY.fullmatch(key)
        if match is None or match.lastgroup is None:
            other.append(key)
            continue
        # Before 0.22 diffusers put the factors of attn.to_q into attn.processor.to_q_lora.
        modules[match["module"].replace(".processor.", ".")][match.lastgroup] = key
    return {name: parts for name, parts in modules.items() if parts.keys() != {"alpha"}}, other


def _why_not(parts: Mapping[str, str], shapes: Mapping[str, Shape]) -> str | None:
    """Say why a module's update is not scaling B A of its stored factors; None if it is."""
    if not {"A", "B"} <= parts.keys():
        return f"the file holds only {', '.join(sorted(parts.values()))} of it"
    if "mid" in parts:
        return "lora_mid: a Tucker decomposition of the convolution, with a core between A and B"
    A, B = shapes[parts["A"]], shapes[parts["B"]]
    if len(A) not in _KINDS or B[1:] != (A[0],) + (1,) * (len(A) - 2):
        return f"factors of shapes {A} and {B} do not multiply"
    if "magnitude" in parts and math.prod(shapes[parts["magnitude"]]) != B[0]:
        return "dora_scale: DoRA with a magnitude for each input, not each output"
    return None


def _reason(key: str) -> str:
    """Name what a tensor of no LoRA belongs to, by LyCORIS's names."""
    families = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", ".diff": "a full difference"}
    found = [family for part, family in families.items() if part in key]
    if found:
        return f"{found[0]}: not an update scaling * B A of stored factors"
    return "not a tensor of a LoRA by kohya's, LyCORIS's or diffusers' names"


def _configurations(path: Path) -> dict[str, AdapterConfig]:
    """Read PEFT's configuration of each component (unet, text_encoder) that diffusers kept."""
    with safe_open(path, framework="pt") as tensors:
        text = (tensors.metadata() or {}).get(METADATA, "{}")
    values: dict[str, dict[str, Any]] = defaultdict(lambda: {"peft_type": "LORA"})
    for name, value in json.loads(text).items():
        component, _, option = name.partition(".")
        values[component][option] = value
    return {component: AdapterConfig(path, options) for component, options in values.items()}


def _layer_and_projection(name: str) -> tuple[int, str]:
    """Read layer and projection from a path, or from kohya's name of underscores.

    >>> _layer_and_projection("lora_te_text_model_encoder_layers_11_self_attn_q_proj")
    (11, 'self_attn_q_proj')
    """
    if "." in name:
        return layer_and_projection(name)
    layer = _KOHYA_LAYER.search(name)
    return int(layer[1]) if layer else -1, re.split(r"_\d+_(?=\D)", name)[-1]
