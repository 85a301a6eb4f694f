"""A small masked run and a plain one, the dense truth about them, and the real command lines."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from subspace_lab.runs.run import Run
from tests.recording.conftest import train_tiny


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """Give a run of six steps under step masks (keep_prob 0.5, rank 4), a snapshot at each."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = {"method": "droplora", "optimizer": "adamw", "seed": 0}
    train_tiny(folder, description={"config": config})
    return Run(folder)


@pytest.fixture
def adapter(run) -> Path:
    """Give a PEFT adapter folder: no cores, no masks, no configuration."""
    return run.path / "snapshots" / "step-000006"


@pytest.fixture
def cancelled(adapter, tmp_path) -> Path:
    """Give an adapter [B, -B] [A; A], the zero update as PiSSA's conversion saves it at step 0."""
    folder = tmp_path / "cancelled"
    folder.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, X in tensors.items():
        tensors[name] = torch.cat([X, X]) if "lora_A" in name else torch.cat([X, -X], dim=1)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["r"] *= 2
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run `python -m analyses.NAME` in this process."""

    def call(name: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.delitem(sys.modules, f"analyses.{name}", raising=False)
        code = 0
        try:
            runpy.run_module(f"analyses.{name}", run_name="__main__")
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


def dense(run: Run, step: int, module: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Give B, A and the scaling of a module from its snapshot, in float64."""
    factors = run.factors(step, module)
    return factors.B.double(), factors.A.double(), factors.scaling
