"""Turn an adapter of another kind (VeRA, LoHa, LoKr, RandLoRA, MiSS, ...) into a LoRA, by SVD.

    python -m subspace_lab.convert --adapter runs/loha --base pocket --rank 16 --out runs/loha-lora
    python -m analyses.effective_rank --run runs/loha-lora

Such an adapter changes each base weight by some dW, which PEFT computes on the base and truncates
to the `rank` largest singular directions (`peft.tuners.lora.conversion`). The result is a PEFT
folder with scaling 1, which opens as a run and loads with `PeftModel.from_pretrained`.
`truncation.json` in it says for each module what is missing, ||dW - B A||_F / ||dW||_F; the command
prints the energy kept, 1 - missing^2. Methods that are no addition to a weight (OFT, IA3, prompts)
are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from subspace_lab import files, models
from subspace_lab.adapters.full import TRUNCATION_FILE
from subspace_lab.errors import UserError, check_counts, exit_code_2_on_user_error
from subspace_lab.module_names import base_name
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.peft_files.checkpoints import resolve_adapter
from subspace_lab.recording.run_folder import refuse_if_occupied

if TYPE_CHECKING:
    from peft import PeftModel


def convert(adapter: str | Path, *, base: str, rank: int, out: Path) -> dict[str, float]:
    """Write an adapter as a LoRA of a given rank.

    Args:
        adapter: a PEFT folder, or a hub id.
        base: the base model that it was trained on (see `models.find_base`).
        rank: singular directions of each dW that are kept.
        out: the folder to write; new or empty.

    Returns:
        ||dW - B A||_F / ||dW||_F by module; 0 where dW is zero.

    Raises:
        UserError: if the adapter does not go onto the base, is of a kind that has no dW, or has
            a weight with fewer than `rank` singular directions.
    """
    from peft import PeftModel
    from peft.tuners.lora.conversion import save_as_lora

    refuse_if_occupied(out, instead="choose another folder (`out`)")
    folder = resolve_adapter(adapter)
    model = models.load_model(models.find_base(base))
    try:
        adapted = PeftModel.from_pretrained(model, folder)
        save_as_lora(out, adapted, rank=rank)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder} cannot be converted on {base}: {first_line}") from error
    missing = _missing(adapted, AdapterFolder(out))
    files.write_json(out / TRUNCATION_FILE, missing)
    return missing


@torch.no_grad()
def _missing(adapted: PeftModel, converted: AdapterFolder) -> dict[str, float]:
    """Compare the truncated updates with the whole ones, which are merged to see them."""
    from transformers.pytorch_utils import Conv1D

    layers = {base_name(name): layer for name, layer in adapted.named_modules()}
    missing = {}
    for module in converted.modules["module"]:
        layer, factors = layers[module], converted.factors(module)
        weight = layer.get_base_layer().weight
        before = weight.double()
        layer.merge()
        update = weight.double() - before
        if isinstance(layer.get_base_layer(), Conv1D):
            update = update.T
        whole = update.norm()
        left = (update - factors.scaling * factors.B.double() @ factors.A.double()).norm()
        missing[module] = float(left / whole) if whole > 0 else 0.0
    return missing


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line, convert, and print the energy kept."""
    parser = argparse.ArgumentParser(
        prog="python -m subspace_lab.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--adapter", required=True, help="a PEFT folder, or a hub id")
    parser.add_argument("--base", required=True, help="the base model that it was trained on")
    parser.add_argument("--rank", required=True, type=int, help="singular directions to keep")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    arguments = parser.parse_args()
    check_counts(rank=arguments.rank)
    missing = convert(
        arguments.adapter, base=arguments.base, rank=arguments.rank, out=arguments.out
    )
    kept = 1 - np.square(list(missing.values()))
    print(
        f"wrote {arguments.out}: rank {arguments.rank} keeps {np.median(kept):.4f} of the energy "
        f"(median of {len(kept)} modules), {kept.min():.4f} at least"
    )


if __name__ == "__main__":
    main()
