"""The methods as PEFT adapters on a base model.

| method | what it trains | what B A is |
|---|---|---|
| `lora` | A and B, B = 0 at first (Hu et al., 2022) | the update |
| `droplora` | the same under a rank mask | the update; no mask at inference |
| `dora` | A, B and a magnitude per output (Liu et al., 2024) | the update of the direction only |
| `pissa` | A, B = the r largest singular directions of W0 (Meng et al., 2024) | see below |
| `milora` | A, B = the r smallest singular directions of W0 (Wang et al., 2025) | see below |
| `olora` | A, B = the leading part of a QR of the base (Büyükakyüz, 2024) | see below |
| `lora_ga`, `corda`, `eva` | A and B from training examples | see `adapters.data_initialization` |
| `adalora` | B, E, A: dW = B diag(E) A, ranks handed out in training | see `adapters.adalora` |
| `full` | the target weights themselves | see `adapters.full` |
| `galore` | the same, with Adam in a projection of the gradient | see `adapters.galore` |

PiSSA, MiLoRA, OLoRA, LoRA-GA and CorDA split the base, W0 = W_res + scaling * B0 A0, and train A
and B from A0 and B0 on W_res. So B A holds the initial part as well and the true update of W0 is

    dW = scaling * (B A - B0 A0),

of rank 2 r at most. A rank core's R describes B A; its displacement since the start describes the
true update exactly: `RankCore.change("start")`. Saved adapters hold the true update, as a plain
LoRA of rank 2 r on the original base (see `adapters.conversion`). All of them want lora_dropout 0,
with which the model starts out as the base.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from torch import nn

from subspace_lab.adapters.data_initialization import (
    FROM_DATA,
    Batches,
    initialization_fields,
    look_at_examples,
    set_from_examples,
)
from subspace_lab.adapters.initialization import (
    refuse_quantized,
    refuse_too_high_ranks,
    split_off_minor_directions,
)
from subspace_lab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers import PreTrainedModel

Method = Literal[
    "lora", "droplora", "dora", "pissa", "milora", "olora", "lora_ga", "corda", "eva",
    "adalora", "full", "galore",
]  # fmt: skip

SPLIT_THE_BASE = ("pissa", "milora", "olora", "lora_ga", "corda")
INITIALIZED_BY_PEFT = ("pissa", "olora", *FROM_DATA)
WHOLE_WEIGHTS = ("full", "galore")

VIRTUAL_TOKENS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "CPT", "CARTRIDGE")

OF_A_SAVED_ADAPTER = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision",
)  # fmt: skip


def default_alpha(method: str, rank: int) -> float:
    """Return the paper's alpha (Table 7): r for PiSSA and MiLoRA, 2 r for the others."""
    return float(rank if method in ("pissa", "milora") else 2 * rank)


def lora_config(
    method: str = "lora",
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> LoraConfig:
    """Return the PEFT configuration of a method that has an adapter: scaling alpha / r.

    Args:
        method: one of `Method`; `droplora` is configured as `lora`.
        rank: r.
        alpha: numerator of the scaling.
        targets: last path components of the layers to adapt.
        lora_dropout: dropout probability on the adapter's input.
        use_rslora: scaling alpha / sqrt(r).
        overrides: any other fields of PEFT's LoraConfig; they win.
    """
    from peft import LoraConfig

    fields = {
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "lora_dropout": lora_dropout,
        "use_rslora": use_rslora,
        "use_dora": method == "dora",
        **(initialization_fields(method) if method in INITIALIZED_BY_PEFT else {}),
        **(overrides or {}),
    }
    if method in SPLIT_THE_BASE and fields["lora_dropout"] > 0:
        warnings.warn(
            f"{method} starts from a nonzero B A, so lora_dropout {fields['lora_dropout']} changes "
            "the model's function from the first step on: its authors train with 0",
            stacklevel=2,
        )
    return LoraConfig(**fields)


def peft_config_from_file(path: str | Path, lora_fields: Mapping[str, Any]) -> PeftConfig:
    """Read a PEFT configuration of any kind from JSON or YAML; a saved adapter's is accepted.

    Args:
        path: the file. Without `peft_type`, or with LORA, its fields override a method's; with
            another `peft_type` they are the whole configuration but for task and targets.
        lora_fields: the arguments of `lora_config`.

    Raises:
        UserError: if the file is missing or malformed, or a kind or field is unknown.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = read_peft_fields(path)
    kind = fields.pop("peft_type")
    classes = {member.value: config for member, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in classes:
        raise UserError(
            f"{path}: the peft_type {kind} is unknown: choose one of {', '.join(classes)}"
        )
    if kind in VIRTUAL_TOKENS:
        raise UserError(
            f"{path}: {kind} puts virtual tokens before the input, so that the loss on responses "
            "would be taken at wrong positions: use PREFIX_TUNING"
        )
    known = classes[kind].__dataclass_fields__
    for name in fields:
        if name not in known:
            raise UserError(f"{path}: {kind} has no field {name!r}{did_you_mean(name, known)}")
    try:
        if kind == "LORA":
            return lora_config(**lora_fields, overrides=fields)
        if "target_modules" in known:
            fields.setdefault("target_modules", list(lora_fields["targets"]))
        return classes[kind](**({"task_type": "CAUSAL_LM"} | fields))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a valid {kind} configuration: {error}") from error


def adapt(
    model: PreTrainedModel,
    config: PeftConfig,
    *,
    seed: int,
    method: str = "lora",
    batches: Batches = (),
) -> PeftModel:
    """Put an adapter on `model`, initialized by `seed`, in fp32 whatever the base's dtype.

    PiSSA and its relatives (`SPLIT_THE_BASE`) change the base's weights in place, rounded to the
    base's dtype.

    Args:
        model: the base model.
        config: the adapter's configuration.
        seed: of the initialization.
        method: one of `Method`.
        batches: of training examples, which `FROM_DATA` look at; on the model's device.

    Raises:
        UserError: if a target module matches nothing in the model, or a method that splits the
            base meets quantized weights or a rank that a weight does not have.
    """
    from peft import get_peft_model

    refuse_unmatched_targets(model, getattr(config, "target_modules", None))
    if method in SPLIT_THE_BASE:
        refuse_quantized(model, method)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method in FROM_DATA:
            look_at_examples(model, config, batches)
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            if "target" not in str(error).lower():
                raise
            message = " ".join(str(error).split())
            raise UserError(f"the adapter does not fit the model: {message}") from error
        if method in FROM_DATA:
            set_from_examples(adapted, batches)
    if method in SPLIT_THE_BASE:
        refuse_too_high_ranks(adapted)
    if method == "milora":
        split_off_minor_directions(adapted)
    return adapted


def refuse_unmatched_targets(model: nn.Module, targets: Collection[str] | str | None) -> None:
    """Refuse target names that match no module, though others do, which PEFT passes over.

    Args:
        model: the base model.
        targets: full names of modules or their last components; PEFT itself checks a regular
            expression and a missing value.

    Raises:
        UserError: naming them, and the model's linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    if targets is None or isinstance(targets, str):
        return
    modules = dict(model.named_modules())
    unmatched = [
        target
        for target in sorted(targets)
        if not any(name == target or name.endswith(f".{target}") for name in modules)
    ]
    if unmatched:
        kinds = (torch.nn.Linear, Conv1D)
        linear = (name for name, module in modules.items() if isinstance(module, kinds))
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise UserError(
            f"the targets {', '.join(unmatched)} match nothing in the model; its linear layers "
            f"are: {known}"
        )


def read_peft_fields(path: str | Path) -> dict[str, Any]:
    """Read the fields of a PEFT configuration, `peft_type` (LORA unless it is given) among them.

    What PEFT notes of a saved adapter (its base, its version, that it is not to be trained) is left
    out, as are fields without a value.

    Raises:
        UserError: if the file is missing or malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the PEFT configuration file {path} does not exist")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} is neither JSON nor YAML: {message}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no fields: write one `name: value` per line")
    kept = {
        str(name): value
        for name, value in fields.items()
        if value is not None and name not in OF_A_SAVED_ADAPTER
    }
    return kept | {"peft_type": str(kept.get("peft_type", "LORA")).upper()}
