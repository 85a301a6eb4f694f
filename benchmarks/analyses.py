"""Time and peak memory of the analyses on a synthetic run of LLaMA-2-7B's shape.

    python -m benchmarks.analyses                          # 160 modules, rank 32, 1,000 steps
    python -m benchmarks.analyses --steps 50 --keep FOLDER # smaller, and keep the run

The run has random cores and step masks, without displacements (9 GB more, which effective ranks
and mask jumps do not read); every command runs in a process of its own, as a user runs it. Writes
benchmarks/results/analyses.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from subspace_lab.runs.stored_cores import pack_triangle

from benchmarks.machine import write_result
from subspace_lab.module_table import module_table
from subspace_lab.recording.writer import RunWriter

ANALYSES = ("effective_rank", "subspace_angles")
PROJECTIONS = {  # of LLaMA-2-7B: m, n
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}


def write_run(folder: Path, *, layers: int, rank: int, steps: int) -> None:
    """Write a finished run with Gaussian frames."""
    rows = [
        (f"model.layers.{layer}.{path}", m, n, rank, 2.0)
        for layer in range(layers)
        for path, (m, n) in PROJECTIONS.items()
    ]
    law = {"keep_prob": 0.5, "granularity": "step", "rescale": True, "sampling": "bernoulli"}
    writer = RunWriter(folder, {"mask": law}, module_table(rows))
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    for step in range(steps + 1):
        frames = torch.randn(
            2, len(rows), rank, rank, dtype=torch.float64, generator=generator
        ).triu()
        frames.diagonal(dim1=-2, dim2=-1).abs_().add_(rank**0.5)
        packed = pack_triangle(frames)
        writer.add_core(
            step, {f"r{rank}/{side}.R": packed[i] for i, side in enumerate(("row", "column"))}
        )
        if step:
            writer.add_masks(step, {rank: rng.random((len(rows), rank)) < 0.5})
        if step % 200 == 0:
            writer.flush(wait=True)
    writer.close()


def measure(name: str, run: Path, out: Path) -> dict[str, Any]:
    """Run one analysis in a process of its own; seconds, processor seconds and peak memory."""
    command = [sys.executable, "-m", f"analyses.{name}", "--run", str(run), "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed with status {status}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_GiB": round(usage.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="write the run here and keep it"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = arguments.keep or Path(temporary) / "run"
        if not run.exists():
            write_run(run, layers=arguments.layers, rank=arguments.rank, steps=arguments.steps)
        found = {name: measure(name, run, Path(temporary) / "out") for name in ANALYSES}
    total = {"seconds": round(sum(each["seconds"] for each in found.values()), 1)}
    shape = {
        "modules": arguments.layers * len(PROJECTIONS),
        "rank": arguments.rank,
        "steps": arguments.steps,
    }
    path = write_result("analyses", {"run": shape, "analyses": found, "together": total})
    print(f"{found}\nwrote {path}")


if __name__ == "__main__":
    main()
