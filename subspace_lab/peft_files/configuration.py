"""What an `adapter_config.json` says about the update: the scaling, and what is not a plain B A."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError

CONFIG_FILE = "adapter_config.json"

# Options of the form use_* and *_config change what the stored factors mean, unless they are
# known here to leave dW = scaling * B A alone. One that a later PEFT adds is therefore refused.
_HARMLESS = {
    "use_rslora",  # read into the scaling
    "use_dora",  # read with its magnitude
    "eva_config",  # the next four choose the initial values
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "runtime_config",
    # Other tools add how they trained, which PEFT ignores.
    "use_gradient_checkpointing",
    "use_reentrant",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_fast_tokenizer",
    "use_safetensors",
    "use_unsloth",
    "use_bf16",
    "use_fp16",
    "use_amp",
    "bnb_config",
    "quantization_config",
}
# Besides `modules_to_save`, PEFT stores these whole where they were resized or are trained.
_EMBEDDINGS = (
    "embed_tokens",
    "lm_head",
    "wte",
    "word_embeddings",
    "embed_in",
    "embed_out",
    "shared",
)
_REFUSED = {
    "use_qalora": "QA-LoRA pools the input features before A, so the update is not B A",
    "use_bdlora": "BD-LoRA stores one factor as the blocks of a block-diagonal matrix",
    "arrow_config": "Arrow routes between several adapters, so there is no single update",
    "kasa_config": "KaSA truncates the base weight and puts a diagonal between B and A",
    "monteclora_config": "MonteCLoRA's factors are the mean of a distribution of updates",
    "alora_invocation_tokens": "aLoRA acts only on the tokens after its invocation string",
}
# Initializations that take something out of the base weight (a residual, or its quantization).
_CHANGE_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of a LoRA or AdaLoRA adapter, as PEFT saved it.

    Attributes:
        folder: the adapter's folder.
        values: the content of `adapter_config.json`.
    """

    folder: Path
    values: dict[str, Any]

    @property
    def is_adalora(self) -> bool:
        """Whether dW = scaling * B diag(E) A."""
        return bool(self.values["peft_type"] == "ADALORA")

    @property
    def use_dora(self) -> bool:
        """Whether each module has a magnitude vector besides its factors."""
        return bool(self.values.get("use_dora"))

    @property
    def variant(self) -> str:
        """`lora`, `dora`, `rslora`, `dora+rslora`, or `adalora`."""
        if self.is_adalora:
            return "adalora"
        names = [name for name in ("dora", "rslora") if self.values.get(f"use_{name}")]
        return "+".join(names) or "lora"

    def refusal(self) -> str | None:
        """Say why no module of this adapter is an update scaling * B A; None if they are."""
        for option, value in self.values.items():
            toggles = option.startswith("use_") or option.endswith("_config")
            if value not in (None, False, {}) and (
                option in _REFUSED or (toggles and option not in _HARMLESS)
            ):
                unknown = (
                    f"the option {option}={value!r} is not known and may change the update: where "
                    f"it does not, remove it from {CONFIG_FILE}"
                )
                return f"{_REFUSED[option]} ({option})" if option in _REFUSED else unknown
        return None

    def expected_rank(self, pattern_key: str) -> int:
        """Return the rank that the configuration assigns to a module.

        Args:
            pattern_key: the name that PEFT matches `rank_pattern` with.
        """
        pattern = self.values.get("rank_pattern") or {}
        if self.is_adalora:
            kept = pattern.get(f"{pattern_key}.lora_E")
            return int(self._required("init_r")) if kept is None else sum(kept)
        return int(_matching(pattern, pattern_key, self._required("r")))

    def scaling(self, pattern_key: str, rank: int) -> float:
        """Compute the scalar before B A, for a module of the given rank.

        LoRA: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023). AdaLoRA in PEFT:
        alpha / (init_r + 1e-5), whatever rank is left after pruning.
        """
        alpha = self._required("lora_alpha")
        if self.is_adalora:
            alpha = alpha if alpha > 0 else rank
            return float(alpha / (self._required("init_r") + 1e-5))
        alpha = _matching(self.values.get("alpha_pattern") or {}, pattern_key, alpha)
        return float(alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank))

    def parameters_of(self, module: str) -> set[str]:
        """Name the parameters of this module that `target_parameters` stands for."""
        targets = self.values.get("target_parameters") or []
        parameters = {target: target.rpartition(".")[2] for target in targets}
        return {
            parameter
            for target, parameter in parameters.items()
            if f".{module}.{parameter}".endswith(f".{target}")
        }

    def stores_whole(self, module: str) -> bool:
        """Tell whether the adapter keeps the whole weights of a module, by its configuration."""
        names = [*(self.values.get("modules_to_save") or []), *_EMBEDDINGS]
        return any(f".{name}." in f".{module}." for name in names)

    def note(self, kind: str) -> str:
        """Tell what a reader of B A has to know besides."""
        notes = []
        initialization = self.values.get("init_lora_weights")
        if kind == "linear" and str(initialization).lower().startswith(_CHANGE_BASE):
            notes.append(
                f"not converted: init_lora_weights={initialization!r} also changed the base "
                "weight, so on the original base the update is not B A"
            )
        if self.use_dora:
            notes.append(
                "B A is DoRA's update of the direction only; the whole update needs the base "
                "weight and the magnitude"
            )
        if self.values.get("layer_replication"):
            notes.append("layer counts the layers after layer_replication")
        return "; ".join(notes)

    def _required(self, option: str) -> Any:
        if not isinstance(self.values.get(option), int | float):
            raise UserError(
                f"{self.folder / CONFIG_FILE} lacks the number {option!r}, without which the "
                "scaling is unknown: take the file that PEFT saved"
            )
        return self.values[option]


def read_config(folder: Path) -> AdapterConfig:
    """Read and check the configuration of an adapter folder.

    Raises:
        UserError: if there is none, if it is not JSON, or if the adapter is not a LoRA.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(
            f"{folder} is not a PEFT adapter folder, it has no {CONFIG_FILE}"
            f"{_elsewhere(folder)}: name the folder that save_pretrained wrote"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): save the adapter again") from error
    peft_type = values.get("peft_type") if isinstance(values, dict) else None
    if peft_type not in ("LORA", "ADALORA"):
        raise UserError(
            f"the adapter in {folder} is of the type {peft_type}, not LORA or ADALORA: "
            "only updates that are stored as two factors B and A can be read"
        )
    return AdapterConfig(folder, values)


def _matching(pattern: dict[str, Any], name: str, default: Any) -> Any:
    if not pattern:
        return default
    from peft.utils.other import get_pattern_key  # 3 s of imports, for few adapters

    return pattern.get(get_pattern_key(list(pattern), name), default)


def _elsewhere(folder: Path) -> str:
    inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
    return f" (but its subfolders {', '.join(inside[:5])} do)" if inside else ""
