"""The gate recorder sees masks of random modules at random steps, and leaves the model alone."""

from __future__ import annotations

import torch
from torch import nn

from subspace_lab import files
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.recording.gate_recorder import (
    CALLS,
    MODULES,
    GateRecorder,
    observed_steps,
)
from subspace_lab.runs.observed_gates import GATES_FILE, read_gates
from tests.tiny import batch, tiny_lora


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def watch(folder, *, steps, last=40, seed=3, resume_at=None, calls=1, dtype=torch.float32):
    """Run forward passes under step masks; give the mask, and what was seen."""
    model = tiny_lora().to(dtype)
    mask = RankMask(0.5, seed=7).attach(model)
    before = hooks(model)
    recorder = GateRecorder(lora_modules(model), folder, last=last, seed=seed, resume_at=resume_at)
    for step in steps:
        mask.set_step(step)
        recorder.begin_step(step)
        expected = MODULES if step in observed_steps(last, seed=seed) else 0
        assert hooks(model) - before == expected
        for _ in range(calls):
            model(**batch())
        recorder.end_step()
        assert hooks(model) == before
    return mask, read_gates(folder)


def test_steps_are_the_first_two_and_some_random_later_ones():
    for last in (1, 2, 3, 5, 8, 1000):
        steps = observed_steps(last, seed=0)
        assert len(steps) == min(last, 8) == len(set(steps))
        assert steps[:2] == [1, 2][:last] and max(steps) <= last and steps == sorted(steps)
    assert observed_steps(1000, seed=0) != observed_steps(1000, seed=1)
    seen = {step for seed in range(400) for step in observed_steps(20, seed=seed)}
    assert seen == set(range(1, 21))


def test_gates_are_the_masks_of_their_steps_and_modules_differ(tmp_path):
    mask, gates = watch(tmp_path, steps=range(1, 41))
    calls = sorted(step for seen in gates for step in seen.steps.tolist())
    assert calls == sorted(observed_steps(40, seed=3) * MODULES)
    assert len(gates) > MODULES
    for seen in gates:
        assert seen.rounding == torch.finfo(torch.float32).eps
        for step, values in zip(seen.steps.tolist(), seen.gates, strict=True):
            expected = torch.from_numpy(mask.masks(step)[seen.module] * 2.0).float()
            torch.testing.assert_close(values, expected.expand_as(values), atol=1e-4, rtol=0)


def test_half_precision_says_so_and_calls_are_bounded(tmp_path):
    _, gates = watch(tmp_path, steps=[1], calls=CALLS + 3, dtype=torch.bfloat16)
    for seen in gates:
        assert seen.rounding == torch.finfo(torch.bfloat16).eps
        assert seen.steps.tolist() == [1] * CALLS


def test_a_resumed_run_forgets_what_came_later_and_sees_the_same_steps(tmp_path):
    whole = watch(tmp_path / "whole", steps=range(1, 41))[1]
    watch(tmp_path / "parts", steps=range(1, 31))
    parts = watch(tmp_path / "parts", steps=range(21, 41), resume_at=20)[1]
    assert [seen.module for seen in whole] == [seen.module for seen in parts]
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.steps, other.steps)
        assert torch.equal(one.gates, other.gates)


def test_files_of_before_are_read_as_half_precision(tmp_path):
    gates = torch.ones(3, 4, 4, 2)
    tensors = {"a.b/steps": torch.tensor([1, 1, 2]), "a.b/gates": gates}
    files.write_tensors(tmp_path / GATES_FILE, tensors)
    (seen,) = read_gates(tmp_path)
    assert seen.module == "a.b" and seen.rounding == torch.finfo(torch.bfloat16).eps
    assert torch.equal(seen.gates, gates)
