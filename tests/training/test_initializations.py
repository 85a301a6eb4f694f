"""Initializations from PEFT: the base's function at the start, and what they took from the data."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from subspace_lab.adapters.methods import adapt, lora_config
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.tiny import TARGETS, batch, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

METHODS = ["olora", "lora_ga", "corda", "eva"]
BATCHES = [batch(rows=8, length=12, seed=seed) for seed in range(6)]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


def layer_inputs(model) -> dict[str, list[torch.Tensor]]:
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, layer in model.eval().named_modules():
        if name.rsplit(".", 1)[-1] in TARGETS:
            layer.register_forward_hook(
                lambda _, x, __, name=name: inputs.setdefault(name, []).append(x[0].flatten(0, 1))
            )
    with torch.no_grad():
        for one in BATCHES:
            model(**one)
    return inputs


def adapted(method: str, rank: int = 4) -> PeftModel:
    config = lora_config(method, rank=rank, alpha=8.0, targets=TARGETS)
    return adapt(tiny_llama(), config, seed=0, method=method, batches=BATCHES)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_starts_out_as_its_base(method):
    torch.testing.assert_close(logits(adapted(method)), logits(tiny_llama()), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_snapshot_is_the_trained_model_on_the_original_base(base, tmp_path, method):
    config = TrainConfig(
        base=str(base), method=method, rank=4, train_size=32, eval_size=8, steps=3, batch_size=4,
        learning_rate=1e-2,
    )  # fmt: skip
    model, trainer = build(config, tmp_path / "run")
    trainer.train()
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    untrained = logits(original)
    reloaded = PeftModel.from_pretrained(original, tmp_path / "run/snapshots/step-000003")
    torch.testing.assert_close(logits(reloaded), logits(model), atol=1e-4, rtol=1e-3)
    assert (logits(model) - untrained).abs().max() > 1e-2
    run = Run(tmp_path / "run")
    for module in run.modules["module"]:  # as for PiSSA, displacements are the true update
        factors = run.factors(3, module)
        update = torch.linalg.svdvals(factors.scaling * factors.B.double() @ factors.A.double())
        found = torch.linalg.svdvals(run.core(3, module).change("start"))
        torch.testing.assert_close(found[:4], update[:4], atol=1e-6, rtol=1e-4)


def test_lora_ga_takes_the_leading_row_directions_of_the_gradient():
    model = tiny_llama().train()
    for inputs in BATCHES:
        model(**inputs).loss.backward()
    for module in lora_modules(adapted("lora_ga")):
        gradient = model.get_parameter(f"{module.name}.weight").grad.double()
        _, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
        overlap = torch.linalg.svdvals(torch.linalg.qr(module.A.double().T).Q.T @ Vh[:4].T)
        assert overlap.min() > 0.99


def test_eva_takes_the_leading_directions_of_the_inputs():
    inputs = layer_inputs(tiny_llama())
    modules = lora_modules(adapted("eva"))
    for module in modules:
        X = torch.cat(inputs[module.name]).double()
        explained = (X @ torch.linalg.qr(module.A.double().T).Q).square().sum()
        best = torch.linalg.svdvals(X)[: module.rank].square().sum()
        assert not module.B.any() and explained > 0.9 * best
    # Ranks move between layers; their sum does not.
    assert sum(m.rank for m in modules) == 4 * len(modules)


def test_corda_takes_out_what_the_inputs_excite_least():
    """The part that it takes out of the base changes outputs less than any other r directions."""
    model = tiny_llama()
    inputs = layer_inputs(model)
    for module in lora_modules(adapted("corda")):
        W = model.get_parameter(f"{module.name}.weight").detach().double()
        X = torch.cat(inputs[module.name]).double()
        part = (module.scaling * module.B @ module.A).detach().double()
        smallest = torch.linalg.svdvals(W)[-4:].square().sum() ** 0.5
        assert (X @ part.T).norm() < 0.5 * (X @ W.T).norm()
        assert part.norm() > 0.5 * smallest
        other = torch.linalg.svd(W, full_matrices=False)
        leading = other.U[:, :4] * other.S[:4] @ other.Vh[:4]
        assert (X @ part.T).norm() < 0.5 * (X @ leading.T).norm()


def test_a_rank_that_lora_ga_cannot_split_is_refused():
    with pytest.raises(UserError, match="divides between A and B"):
        adapted("lora_ga", rank=12)


def test_as_many_examples_as_are_asked_for_are_looked_at(base, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "subspace_lab.adapters.methods.look_at_examples",
        lambda model, config, batches: seen.extend(len(b["input_ids"]) for b in batches),
    )
    config = TrainConfig(
        base=str(base), method="eva", rank=4, train_size=32, eval_size=8, steps=1, batch_size=4,
        initialization_examples=10,
    )  # fmt: skip
    train(config, tmp_path / "run")
    assert seen == [4, 4, 2]
    with pytest.raises(UserError, match="initialization_examples"):
        dataclasses.replace(config, initialization_examples=0)
