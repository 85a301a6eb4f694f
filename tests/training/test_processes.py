"""Two processes under accelerate give the run of one process with the same global batch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.presets import CONFIGS
from subspace_lab.training.trainer import train
from tests.training.conftest import TINY, environment

LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    f"--config_file={CONFIGS / 'accelerate' / 'cpu.yaml'}",
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes would share the GPU")
def test_two_processes_give_the_run_of_one(base, tmp_path):
    config = TrainConfig(
        base=str(base),
        base_dtype="fp32",
        method="droplora",
        rank=4,
        train_size=32,
        eval_size=8,
        steps=3,
        batch_size=4,
        global_batch=8,
        learning_rate=1e-2,
    )
    train(config, tmp_path / "one")
    own = ["--global_batch=8", "--method=droplora", f"--base={base}", f"--out={tmp_path / 'two'}"]
    launched = subprocess.run(
        [sys.executable, *LAUNCH, "-m", "subspace_lab.train", *TINY, *own],
        capture_output=True,
        text=True,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        timeout=170,
    )
    assert launched.returncode == 0, launched.stderr[-2000:]
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    assert two.description["provenance"]["processes"] == 2
    assert one.config | {"max_length": 0} == two.config | {"max_length": 0}
    for column in ("loss", "tokens_seen", "gradient_norm"):
        np.testing.assert_allclose(
            one.metrics[column].dropna(), two.metrics[column].dropna(), rtol=1e-4
        )
    for module in one.modules["module"]:
        np.testing.assert_array_equal(one.masks(module)[1], two.masks(module)[1])
        torch.testing.assert_close(
            one.core(3, module).singular_values(),
            two.core(3, module).singular_values(),
            rtol=1e-3,
            atol=1e-6,
        )
