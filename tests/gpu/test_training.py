"""Masks, checkpointing, compilation, precision, recording and resuming on the device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from subspace_lab import tasks
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.evaluation import likelihood
from subspace_lab.evaluation.generation import generate
from subspace_lab.evaluation.trained_model import load_trained
from subspace_lab.runs.run import Run
from subspace_lab.theory.mask_law import Bernoulli
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.recording.conftest import train_tiny
from tests.tiny import batch, tiny_lora

GRANULARITIES = ["step", "sample", "token"]
KEEP_PROB = 0.5


def masked_model(device, granularity):
    """A trained-like LoRA with a mask on the device, in training."""
    model = tiny_lora(rank=8, trained=True).to(device).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its B A is not zero, on purpose
        mask = RankMask(KEEP_PROB, granularity=granularity, seed=3).attach(model)
    mask.set_step(2)
    return model, mask


def loss_and_gradients(model, device):
    model.zero_grad()
    data = {name: value.to(device) for name, value in batch().items()}
    loss = model(**data, use_cache=False).loss
    loss.backward()
    return loss.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }


def begin_again(mask):
    """Begin the mask's step again: its next forward pass is the step's first."""
    step = mask.step
    mask.set_step(step + 1)
    mask.set_step(step)


def gates(module, device, rows=64, tokens=32):
    """What the mask multiplied A x by, (rows, tokens, r)."""
    generator = torch.Generator().manual_seed(1)  # not the one that draws the masks
    x = torch.randn(rows, tokens, module.A.shape[1], generator=generator).to(device)
    with torch.no_grad():
        return module.A_module(x) / torch.nn.functional.linear(x, module.A)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_mask_keeps_and_rescales_as_its_law_says(granularity, device) -> None:
    model, mask = masked_model(device, granularity)
    module = lora_modules(model)[0]
    seen = gates(module, device)
    kept = seen.abs() > 1e-3
    expected = torch.where(kept, torch.tensor(1 / KEEP_PROB, device=device), 0.0)
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-6)
    if granularity == "step":
        law = torch.from_numpy(mask.masks(2)[module.name]).to(device)
        assert torch.equal(kept, law.expand_as(kept))
        return
    if granularity == "sample":
        assert torch.equal(kept, kept[:, :1].expand_as(kept))
        kept = kept[:, 0]
    deviation = float(kept.float().mean()) - KEEP_PROB
    assert abs(deviation) < 6 * (KEEP_PROB * (1 - KEEP_PROB) / kept.numel()) ** 0.5
    other = lora_modules(model)[1]
    assert not torch.equal(seen[..., 0], gates(other, device)[..., 0])


def test_directions_that_a_step_mask_drops_have_no_gradient(device) -> None:
    model, mask = masked_model(device, "step")
    loss_and_gradients(model, device)
    for module in lora_modules(model):
        dropped = torch.from_numpy(~mask.masks(2)[module.name]).to(device)
        assert 0 < dropped.sum() < 8
        assert not module.A.grad[dropped].any()
        assert not module.B.grad[:, dropped].any()
        assert module.A.grad[~dropped].any()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_checkpointing_draws_the_same_masks_again(
    granularity, use_reentrant, device
) -> None:
    model, mask = masked_model(device, granularity)
    loss, gradients = loss_and_gradients(model, device)
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    model.enable_input_require_grads()
    begin_again(mask)
    again, recomputed = loss_and_gradients(model, device)
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6)
    if granularity != "step":
        other, _ = loss_and_gradients(model, device)
        assert not torch.equal(other, loss)  # the next micro-batch has masks of its own


def test_a_compiled_model_has_the_same_step_masks(device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/adapters/test_mask.py compiles for the processor")
    model, mask = masked_model(device, "step")
    compiled = torch.compile(model)
    data = {name: value.to(device) for name, value in batch().items()}
    losses = []
    for step in (1, 2, 3):
        mask.set_step(step)
        loss, gradients = loss_and_gradients(model, device)
        model.zero_grad()
        found = compiled(**data, use_cache=False).loss
        found.backward()
        torch.testing.assert_close(found.detach(), loss, rtol=1e-4, atol=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(
                    parameter.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name
                )
        losses.append(float(loss))
    assert len(set(losses)) == 3


def assert_cores_are_those_of_the_snapshots(run: Run, steps: list[int]) -> None:
    for step in steps:
        for module in run.modules["module"]:
            factors = run.factors(step, module)
            B, A = factors.B.double().cpu(), factors.A.double().cpu()
            truth = torch.linalg.svdvals(factors.scaling * B @ A)[: A.shape[0]]
            found = run.core(step, module).singular_values()
            assert (found - truth).abs().max() <= 1e-8 * max(float(truth[0]), 1e-12)


def test_copies_of_the_recorder_hold_the_step_they_belong_to(device, tmp_path) -> None:
    """Copies to the host run beside the next steps, which change A and B in place."""
    model = train_tiny(tmp_path / "run", steps=12)
    assert next(model.parameters()).device.type == device.type
    run = Run(tmp_path / "run")
    assert run.steps == list(range(13))
    assert_cores_are_those_of_the_snapshots(run, [1, 2, 7, 11, 12])
    law = Bernoulli(0.5, seed=1)
    for module in run.modules["module"]:
        for step in (1, 8, 12):
            np.testing.assert_array_equal(run.mask(step, module), law.step_mask(step, module, 4))


@pytest.fixture(scope="module")
def config(base, data) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        task="boolq",
        data_dir=str(data),
        eval_split="test",
        base_dtype="bf16",
        method="droplora",
        rank=4,
        train_size=32,
        eval_size=8,
        steps=5,
        batch_size=4,
        learning_rate=1e-2,
        snapshots="every:1",
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def bf16_run(config, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "bf16"
    train(config, folder)
    return Run(folder)


def test_a_bf16_base_trains_adapters_in_fp32(bf16_run) -> None:
    assert bf16_run.description["provenance"]["base_dtype"] == "bfloat16"
    assert bf16_run.metrics["loss"].dropna().between(0.1, 20).all()
    module = bf16_run.modules["module"][0]
    factors = bf16_run.factors(5, module)
    assert factors.A.dtype == factors.B.dtype == torch.float32
    assert not torch.equal(factors.A, factors.A.bfloat16().float())  # nor were rounded on the way
    assert_cores_are_those_of_the_snapshots(bf16_run, [1, 3, 5])


def test_evaluation_on_the_device_equals_that_on_the_processor(bf16_run, data, device) -> None:
    trained = load_trained(bf16_run)
    model = trained.model.float()
    assert next(model.parameters()).device.type == device.type
    examples = tasks.load("boolq", "test", data_dir=data)

    def evaluated() -> tuple[list[float], list[str]]:
        found = likelihood.exact_match(model, trained.tokenizer, examples, batch_size=4)
        texts = generate(
            model,
            trained.tokenizer,
            [example.prompt for example in examples],
            max_new_tokens=4,
            batch_size=4,
        )
        return found.select_dtypes("number").to_numpy().tolist(), texts

    numbers, texts = evaluated()
    model.cpu()
    on_the_processor, texts_there = evaluated()
    np.testing.assert_allclose(numbers, on_the_processor, rtol=1e-3, atol=1e-3)
    assert texts == texts_there


class KilledAfter(TrainerCallback):
    """Ends the process by SIGKILL, as a cluster does, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(config: TrainConfig, folder) -> None:
    _, trainer = build(config, folder)
    trainer.add_callback(KilledAfter(3))
    trainer.train()


def test_a_killed_run_resumes_to_what_it_would_have_been(
    config, bf16_run, device, tmp_path
) -> None:
    # A forked process can use neither this process's GPU nor, safely, its torch threads.
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=train_and_die, args=(config, tmp_path / "run"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert Run(tmp_path / "run").description["status"] == "running"
    train(config, tmp_path / "run", resume=True)
    run = Run(tmp_path / "run")
    assert run.steps == bf16_run.steps
    np.testing.assert_allclose(run.metrics["loss"], bf16_run.metrics["loss"], rtol=2e-2)
    for module in run.modules["module"]:
        np.testing.assert_array_equal(run.masks(module)[1], bf16_run.masks(module)[1])
    assert_cores_are_those_of_the_snapshots(run, [1, 3, 5])
