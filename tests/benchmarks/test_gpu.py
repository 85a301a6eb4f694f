"""`make gpu` on the processor: the same code, a tiny shape."""

from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.training import ARMS, RATIOS, ratio


def rows(folder) -> list[gpu.Row]:
    return json.loads((folder / "gpu.json").read_text())["rows"]


def test_training_costs_are_measured_for_every_arm(tmp_path) -> None:
    parts = {"training": partial(gpu.training_costs, "tiny", 10)}
    assert gpu.run(parts, tmp_path) == 0
    found = {row["what"]: row["result"] for row in rows(tmp_path)}
    assert set(found) >= {f"step of {arm}" for arm in ARMS}
    names = [f"{name}, median" for name in RATIOS[:-1]] + [f"{RATIOS[-1]}, mean"]
    assert all(float(found[name]) > 0 for name in names)
    table = (tmp_path / "gpu.md").read_text()
    assert re.search(
        r"\| training \| recorded_over_not, median \| \d\.\d{3} \| 95 % interval", table
    )


def test_a_real_run_is_trained_recorded_and_evaluated(tmp_path) -> None:
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym")
    parts = {"smollm2": partial(gpu.smollm2_run, "pocket", 2)}
    assert gpu.run(parts, tmp_path) == 0
    found = {row["what"]: row["result"] for row in rows(tmp_path)}
    before, after = map(float, found["response loss"].split(" to "))
    assert 0 < after < before
    assert 0 <= float(found["exact match of the saved adapter"]) <= 1


def test_recording_every_tenth_step_is_averaged_over_all_steps() -> None:
    """One step in ten takes three times as long: 1.2 on average, which a median would not see."""
    lora = np.linspace(1, 2, 20)
    every_10 = lora * [3, *[1.0] * 9, 3, *[1.0] * 9]
    assert ratio(every_10, lora, average=np.mean)["mean"] == pytest.approx(1.2)


def test_each_test_is_a_row_and_a_failure_is_the_exit_code(tmp_path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.cuda\n"
        "@pytest.mark.parametrize('name', ['a b'])\n"
        "def test_right(name): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "@pytest.mark.skip\n"
        "def test_left_out(): pass\n"
    )
    parts = {"tests": partial(gpu.cuda_tests, str(file))}
    assert gpu.run(parts, tmp_path) == 1
    results = {row["what"].rpartition("::")[2]: row["result"] for row in rows(tmp_path)}
    assert results["test_right[a b]"] == "passed"
    assert results["test_wrong"] == "failed"
    assert results["test_left_out"] == "skipped"


def test_a_part_that_breaks_is_told_and_the_others_are_measured_and_kept(tmp_path) -> None:
    def breaks():
        yield gpu.row_of("before", "1 s")
        raise RuntimeError("CUDA out of | memory")

    def works():
        yield gpu.row_of("speed", "2 s")

    assert gpu.run({"training": breaks, "smollm2": works}, tmp_path) == 1
    assert (
        "| training | training | error | RuntimeError: CUDA out of \\| memory |"
        in (tmp_path / "gpu.md").read_text()
    )
    assert gpu.run({"training": works}, tmp_path) == 0
    found = [(row["part"], row["what"], row["result"]) for row in rows(tmp_path)]
    assert ("smollm2", "speed", "2 s") in found
    assert ("training", "speed", "2 s") in found
    assert "error" not in {result for _, _, result in found}


def test_without_a_gpu_nothing_is_measured_and_it_is_said(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--parts", "training", "smollm2"])
    monkeypatch.setattr(gpu, "run", lambda *_: pytest.fail("measured"))
    gpu.main()
    assert (
        "finds no GPU: training, smollm2 skipped, nothing was measured" in capsys.readouterr().out
    )
