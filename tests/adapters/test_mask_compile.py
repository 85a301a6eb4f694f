"""Masks under torch.compile: one graph that reads the step mask, random masks outside the graph."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from tests.tiny import batch, tiny_lora

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(call, inputs, parameters, steps):
    """Take SGD steps of two micro-batches on the output's mean square; give their gradients."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    gradients = []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(2):
            output = call(**inputs)
            getattr(output, "logits", output).square().mean().backward()
        gradients.append([p.grad.clone() for p in parameters])
        optimizer.step()
    return gradients


def masked_model(**law):
    model = tiny_lora(trained=True).train()
    with pytest.warns(UserWarning, match="not zero"):
        mask = RankMask(0.5, seed=2, **law).attach(model)
    return model, mask, [p for p in model.parameters() if p.requires_grad]


def test_a_compiled_model_is_one_graph_that_follows_the_step_masks():
    counter = CompileCounterWithBackend("aot_eager")
    runs = []
    for compiled in (False, True):
        model, mask, parameters = masked_model()
        call = torch.compile(model, backend=counter, fullgraph=True) if compiled else model
        inputs = {"input_ids": batch()["input_ids"], "use_cache": False}
        runs.append(train(call, inputs, parameters, 4))
        assert mask.step == 5
    assert counter.frame_count == 1
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("granularity", "backend"),
    [
        pytest.param("step", "inductor", marks=COMPILER),
        ("sample", "aot_eager"),
        ("token", "aot_eager"),
    ],
)
def test_a_compiled_layer_gets_the_masks_of_a_plain_one(granularity, backend):
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))
    runs = []
    for compiled in (False, True):
        model, _, _ = masked_model(granularity=granularity)
        module = lora_modules(model)[0]
        call = torch.compile(module.layer, backend=backend) if compiled else module.layer
        runs.append(train(call, {"x": x}, [module.A, module.B], 3))
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-6)
