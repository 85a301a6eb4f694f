"""Full fine-tuning of the target weights, recorded as the change dW = W - W0 of each.

There are no factors, so there are no rank cores. A snapshot holds the singular value decomposition
of every dW in the form of a PEFT LoRA folder with scaling 1,

    B = U[:, :k] diag(S[:k])^(1/2),    A = diag(S[:k])^(1/2) Vh[:k],

so that analyses and `PeftModel.from_pretrained(base, snapshot)` read it like any other adapter.
Complete (k = min(m, n)) it is the trained model; truncated, `truncation.json` beside it states for
each module what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.module_names import lora_key
from subspace_lab.module_table import module_table

if TYPE_CHECKING:
    from peft import LoraConfig

TRUNCATION_FILE = "truncation.json"


class FullChange:
    """Trains the target weights of a model and saves their change.

    Args:
        model: the base model, in fp32 since its weights are the optimizer's: all parameters but
            the weights of the targets are frozen.
        targets: last path components of the linear layers to train.
        rank: singular directions k of each dW that a snapshot keeps; None: all.

    Raises:
        UserError: if a target matches no linear layer, or the model is not in fp32.
    """

    def __init__(self, model: nn.Module, targets: Sequence[str], *, rank: int | None) -> None:
        self._targets = list(targets)
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets
        }
        matched = {name.rsplit(".", 1)[-1] for name in layers}
        if unmatched := [target for target in targets if target not in matched]:
            raise UserError(
                f"the targets {', '.join(unmatched)} match no linear layer of the model"
            )
        model.requires_grad_(False)
        self._initial: dict[str, Tensor] = {}
        self._ranks: dict[str, int] = {}
        for name, layer in layers.items():
            if layer.weight.dtype != torch.float32:
                raise UserError("full fine-tuning needs a base in fp32: set `base_dtype` to fp32")
            layer.weight.requires_grad_(True)
            self._initial[name] = layer.weight.detach().cpu().clone()
            self._ranks[name] = min(rank or min(layer.weight.shape), *layer.weight.shape)

    @property
    def modules(self) -> pd.DataFrame:
        """The module table, with r = k and scaling 1."""
        return module_table(
            (name, *weight.shape, self._ranks[name], 1.0) for name, weight in self._initial.items()
        )

    def __call__(self, model: nn.Module, folder: Path) -> None:
        """Write the singular value decomposition of every dW as a LoRA folder.

        `truncation.json` maps each module to ||dW - B A||_F / ||dW||_F, 0 for a complete one.
        """
        factors: dict[str, Tensor] = {}
        missing: dict[str, float] = {}
        for name, W0 in self._initial.items():
            weight = model.get_parameter(f"{name}.weight").detach()
            B, A, missing[name] = _factorize(weight - W0.to(weight), self._ranks[name])
            factors |= {lora_key(name, "A"): A, lora_key(name, "B"): B}
        folder.mkdir(parents=True, exist_ok=True)
        files.write_tensors(folder / "adapter_model.safetensors", factors)
        files.write_json(folder / TRUNCATION_FILE, missing)
        self._config(getattr(model, "name_or_path", None)).save_pretrained(folder)

    def _config(self, base: str | None) -> LoraConfig:
        from peft import LoraConfig

        largest = max(self._ranks.values())
        smaller = {name: rank for name, rank in self._ranks.items() if rank != largest}
        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base or None,
            inference_mode=True,
            r=largest,
            lora_alpha=largest,
            rank_pattern=smaller,
            alpha_pattern=smaller,
            target_modules=self._targets,
        )


def _factorize(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return B (m, rank), A (rank, n) in fp32, and the relative Frobenius norm of the remainder."""
    U, S, Vh = torch.linalg.svd(change.double(), full_matrices=False)
    root = S[:rank].sqrt()
    B, A = U[:, :rank] * root, root[:, None] * Vh[:rank]
    norm = torch.linalg.vector_norm(S)
    missing = torch.linalg.vector_norm(S[rank:]) / norm if norm > 0 else norm
    return B.float().cpu(), A.float().cpu(), float(missing)
