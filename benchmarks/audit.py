"""An audit of an adapter of LLaMA-2-7B's shape, beside that of Gradience 0.11, in one run.

    pip install gradience==0.11                 # into an environment of its own
    python -m benchmarks.audit --gradience ENVIRONMENT/bin/gradience
    python -m benchmarks.audit --gradience ... --layers 4 --repeats 1   # in seconds

The adapter has Gaussian factors in fp16, rank 64, on seven projections of 32 layers. Both commands
read it from disk and compute effective ranks of every module: `python -m analyses.effective_rank
--format none` and `gradience audit`. They take turns, alone and with one core kept busy, each in a
process of its own, start-up included. Writes benchmarks/results/audit.json; a ratio below 1 says
that effective_rank is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.machine import measure, write_result

HIDDEN, INTERMEDIATE = 4096, 11008  # of LLaMA-2-7B
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
BURNER = "while True: pass"


def write_adapter(folder: Path, *, layers: int, rank: int) -> None:
    """Write a LoRA adapter as PEFT does."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for name, (m, n) in PROJECTIONS.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            for letter, shape in (("A", (rank, n)), ("B", (m, rank))):
                factor = torch.randn(shape, generator=generator) * 0.02
                tensors[f"{module}.lora_{letter}.weight"] = factor.half()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name.rpartition(".")[2] for name in PROJECTIONS]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep cores busy with processes that do nothing else."""
    burners = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def compare(commands: dict[str, Sequence[str]], *, busy: int, repeats: int) -> dict[str, Any]:
    """Measure commands in turns; medians, and the ratio of the first to the second."""
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    with busy_cores(busy):
        for _ in range(repeats):
            for name, command in commands.items():
                measured[name].append(measure(command))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in measured.items()
    }
    first, second = medians.values()
    return medians | {"ratio": round(first["seconds"] / second["seconds"], 2)}


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradience", default="gradience", metavar="COMMAND")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        adapter, out = Path(temporary) / "adapter", Path(temporary) / "out"
        write_adapter(adapter, layers=arguments.layers, rank=arguments.rank)
        ours = [sys.executable, "-m", "analyses.effective_rank", "--run", str(adapter)]
        commands: dict[str, Sequence[str]] = {
            "effective_rank": [*ours, "--out", str(out), "--format", "none"],
            "gradience audit": [arguments.gradience, "audit", "--peft-dir", str(adapter), "--json"],
        }
        results = {
            name: compare(commands, busy=busy, repeats=arguments.repeats)
            for name, busy in (("alone", 0), ("one core busy", 1))
        }
    shape = {"modules": arguments.layers * len(PROJECTIONS), "rank": arguments.rank}
    path = write_result("audit", {"adapter": shape, **results})
    print(json.dumps(results, indent=2), f"wrote {path}", sep="\n")


if __name__ == "__main__":
    main()
