"""The runs that the notebooks read: three methods on the bench under label noise, three seeds each.

    python scripts/make_example.py --full runs/example --out notebooks/example

Trains nine runs of regime A of the bench, LoRA and step masks with and without rescale, at rank 8
(the bench has 16), and copies them so that they take 4 MB together. A copy is
read like any run, and differs from the full one in three ways:

    cores      float32 in place of float64: relative rounding of 6e-8
    snapshots  float16 in place of float32, relative rounding of 5e-4, and not that of step 0, where
               B is zero
    model card left out
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from subspace_lab import files, train

METHODS = {
    "LoRA": ("--config=lora", "--learning_rate=1e-3"),
    "step": ("--config=step", "--learning_rate=2e-3"),
    "paper-eq2": ("--config=paper-eq2", "--learning_rate=2e-3"),
}
"""Presets and rates; those of LoRA and step are their own at rank 16 (experiment X2)."""
SEEDS = (0, 1, 2)
SHARED = ("--config=bench/label-noise", "--rank=8", "--test_size=300", "--cores=every:40")
LEFT_OUT = ("checkpoints", "step-000000", "README.md")


def main() -> None:
    """Train what is missing, and copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", type=Path, default=Path("runs/example"), help="the full runs")
    parser.add_argument("--out", type=Path, default=Path("notebooks/example"), help="the copies")
    arguments = parser.parse_args()
    for method, options in METHODS.items():
        for seed in SEEDS:
            name = f"{method},seed={seed}"
            full, copy = arguments.full / name, arguments.out / name
            command = [*SHARED, *options, f"--seed={seed}", f"--out={full}", "--resume=true"]
            sys.argv = ["subspace_lab.train", *command]
            train.main()
            copy_small(full, copy)


def copy_small(full: Path, copy: Path) -> None:
    """Copy a run without LEFT_OUT and in lower precision, in place of an earlier copy."""
    with files.replacing(copy) as unfinished:
        shutil.copytree(full, unfinished, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for pattern, dtype in (("cores/*", torch.float32), ("snapshots/*/*", torch.float16)):
            for path in unfinished.glob(f"{pattern}.safetensors"):
                tensors = load_file(path)
                small = {name: of_dtype(tensor, dtype) for name, tensor in tensors.items()}
                files.write_tensors(path, small)
        if copy.exists():
            shutil.rmtree(copy)


def of_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round numbers, but not counts."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
