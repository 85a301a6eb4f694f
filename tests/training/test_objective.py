"""Objectives on a model whose masks can be enumerated, and what the Trainer makes of them."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from subspace_lab.adapters.mask import MaskLaw, RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.training.objective import Objective, Term, default_strength
from subspace_lab.training.objective_trainer import ObjectiveTrainer
from subspace_lab.training.penalty import Penalty
from tests.tiny import batch, tiny_lora

pytestmark = pytest.mark.filterwarnings("ignore:the adapter's B A is not zero")

RANK, KEEP_PROB = 3, 0.3


class OneLayer(nn.Module):
    """A linear layer of 5 inputs and 4 outputs with a LoRA on it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=1.7 * RANK, target_modules=["layer"])
    adapted = get_peft_model(OneLayer(), config).double().train()
    nn.init.normal_(lora_modules(adapted)[0].B)
    return adapted


@pytest.fixture
def mask(model) -> RankMask:
    return RankMask(KEEP_PROB, seed=1).attach(model)


@pytest.fixture
def every_mask(monkeypatch) -> torch.Tensor:
    """All 2^r masks; the law's mask number i is the i-th of them."""
    masks = all_masks(RANK)
    monkeypatch.setattr(MaskLaw, "step_mask", lambda law, step, name, rank: masks[step].numpy())
    return masks


def squared_loss(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    y = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    return (y - model(x)).square().sum() / 7


def curved_loss(model: nn.Module) -> torch.Tensor:
    """A loss that is not quadratic in the gates."""
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return nn.functional.cross_entropy(0.3 * model(x), torch.arange(7) % 4)


def gradient(model: nn.Module, mask: RankMask, terms: list[Term], loss=squared_loss):
    """Give the gradient of a weighted sum of losses, all of A's entries and then all of B's."""
    model.zero_grad()
    for term in terms:
        with mask.use(term.gates):
            (term.weight * loss(model)).backward()
    module = lora_modules(model)[0]
    return torch.cat([module.A.grad.flatten(), module.B.grad.flatten()])


def drawn(mask: RankMask, kept: torch.Tensor) -> list[Term]:
    return [Term(1.0, {name: kept.double() * mask.law.factor for name in mask.ranks})]


def equal_gates(mask: RankMask) -> list[Term]:
    return [Term(1.0, {name: torch.ones(RANK) for name in mask.ranks})]


def test_noise_only_has_the_full_gradients_mean_and_a_masked_gradients_covariance(
    model, mask, every_mask, monkeypatch
):
    q = mask_probabilities(every_mask, keep_prob=KEEP_PROB)
    masked = torch.stack([gradient(model, mask, drawn(mask, kept)) for kept in every_mask])
    noisy, weights = [], []
    for i, j in itertools.product(range(len(every_mask)), repeat=2):
        pair = {1: every_mask[i], 2: every_mask[j]}
        monkeypatch.setattr(MaskLaw, "step_mask", lambda law, step, *_, p=pair: p[step].numpy())
        noisy.append(gradient(model, mask, Objective(mask, "noise-only").terms(1)))
        weights.append(q[i] * q[j])
    noisy, weights = torch.stack(noisy), torch.stack(weights)
    mean = weights @ noisy
    torch.testing.assert_close(mean, gradient(model, mask, equal_gates(mask)), rtol=1e-6, atol=1e-6)
    found = torch.einsum("k,ki,kj->ij", weights, noisy - mean, noisy - mean)
    centred = masked - q @ masked
    expected = torch.einsum("k,ki,kj->ij", q, centred, centred)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_all_masks_together_are_the_penalty_on_a_linear_layer(model, mask, every_mask):
    q = mask_probabilities(every_mask, keep_prob=KEEP_PROB)
    expected = sum(
        p * gradient(model, mask, drawn(mask, kept)) for p, kept in zip(q, every_mask, strict=True)
    )
    penalty = Penalty(lora_modules(model))
    model.zero_grad()
    (term,) = Objective(mask, "penalty").terms(1)
    with mask.use(term.gates), penalty.collected(None):
        loss = squared_loss(model)
        (loss + default_strength(KEEP_PROB) * penalty.total()).backward()
    module = lora_modules(model)[0]
    found = torch.cat([module.A.grad.flatten(), module.B.grad.flatten()])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (expected - gradient(model, mask, equal_gates(mask))).norm() > expected.norm() / 10


def test_all_masks_together_are_the_second_order_on_a_linear_layer(model, mask, every_mask):
    q = mask_probabilities(every_mask, keep_prob=KEEP_PROB)
    expected = sum(
        p * gradient(model, mask, drawn(mask, kept)) for p, kept in zip(q, every_mask, strict=True)
    )
    objective = Objective(mask, "second-order", strength=default_strength(KEEP_PROB))
    steps = range(len(every_mask))
    found = sum(gradient(model, mask, objective.terms(step)) for step in steps) / len(steps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # fp32 gates


def test_second_order_is_half_the_hessians_trace_where_the_loss_is_curved(model, mask, every_mask):
    strength = 0.7
    objective = Objective(mask, "second-order", strength=strength)
    steps = range(len(every_mask))
    found = sum(gradient(model, mask, objective.terms(s), curved_loss) for s in steps) / len(steps)

    module = lora_modules(model)[0]
    model.zero_grad()

    def of_gates(gates: torch.Tensor) -> torch.Tensor:
        with mask.use(dict.fromkeys(mask.ranks, gates)):
            return curved_loss(model)

    ones = torch.ones(RANK, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(of_gates, ones, create_graph=True)
    (of_gates(ones) + strength / 2 * hessian.trace()).backward()
    expected = torch.cat([module.A.grad.flatten(), module.B.grad.flatten()])
    plain = gradient(model, mask, equal_gates(mask), curved_loss)
    assert (expected - plain).norm() > expected.norm() / 10
    # The error is O(h²), h = 0.1.
    assert (found - expected).norm() < 0.02 * (expected - plain).norm()


def test_masks_of_a_step_are_those_of_no_other_step(mask):
    objective = Objective(mask, masks_per_step=4)
    terms = [term for step in (1, 2) for term in objective.terms(step)]
    name = next(iter(mask.ranks))
    expected = [mask.masks(number)[name] * mask.law.factor for number in range(1, 9)]
    for term, gates in zip(terms, expected, strict=True):
        assert term.weight == 0.25
        torch.testing.assert_close(term.gates[name].numpy(), gates.astype("float32"))
    (alone,) = Objective(mask).terms(3)
    assert (alone.gates[name].numpy() > 0).tolist() == mask.masks(3)[name].tolist()


def twin_gradient(model: nn.Module, gates: dict[str, torch.Tensor], rows: dict) -> torch.Tensor:
    """Brute force: the gradient of an unmasked copy whose B has its columns multiplied."""
    twin = copy.deepcopy(model)
    for module in lora_modules(twin):
        module.B.data *= gates[module.name]
    twin(**rows).loss.backward()
    return torch.cat(
        [
            part.flatten()
            for module in lora_modules(twin)
            for part in (module.A.grad, module.B.grad * gates[module.name])
        ]
    )


def trained(
    model: nn.Module, objective: Objective, folder, *, batch_size: int, accumulation: int
) -> tuple[torch.Tensor, float]:
    """Take one step of plain SGD at learning rate 1: its gradient, and the loss that is logged."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=batch_size, optim="sgd",
        gradient_accumulation_steps=accumulation, learning_rate=1.0, max_grad_norm=0.0,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    rows = batch(rows=8)["input_ids"]
    trainer = ObjectiveTrainer(
        objective=objective,
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
    )
    before = flat(model)
    trainer.train()
    return before - flat(model), trainer.state.log_history[0]["loss"]


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat(
        [p.detach().flatten().clone() for m in lora_modules(model) for p in (m.A, m.B)]
    )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("loss", [1 / 3, 1 / 3, 1 / 3]),
        ("noise-only", [1, math.sqrt(0.5), -math.sqrt(0.5)]),
        ("second-order", [1 - 70, 35, 35]),
        ("penalty", [1]),
    ],
)
def test_a_training_step_descends_the_weighted_gradients(tmp_path, kind, weights, accumulation):
    model = tiny_lora(trained=True)
    copied = copy.deepcopy(model)
    mask = RankMask(0.5, seed=1).attach(model)
    objective = Objective(mask, kind, masks_per_step=3 if kind == "loss" else 1, strength=0.7)
    terms = objective.terms(1)
    assert [term.weight for term in terms] == pytest.approx(weights)
    rows = batch(rows=8)  # in one batch, or two of the same length
    expected = sum(term.weight * twin_gradient(copied, term.gates, rows) for term in terms)
    if kind == "penalty":
        expected = expected + 0.7 * penalty_gradient(copied, rows)
    found, loss = trained(
        model, objective, tmp_path, batch_size=8 // accumulation, accumulation=accumulation
    )
    assert (found - expected).norm() < 1e-4 * max(map(abs, weights)) * expected.norm()
    with torch.no_grad():
        plain = float(copied(**rows).loss)
    assert kind == "loss" or loss == pytest.approx(plain, rel=1e-3)
    assert mask.step == 2


def penalty_gradient(model: nn.Module, rows: dict) -> torch.Tensor:
    """Brute force: the gradient of sum_i ||b_i||² mean_t (a_i x_t)², inputs found by hooks."""
    twin, inputs = copy.deepcopy(model), {}
    for module in lora_modules(twin):
        module.layer.register_forward_pre_hook(
            lambda layer, given, name=module.name: inputs.__setitem__(name, given[0])
        )
    twin(**rows)
    total = sum(
        module.scaling**2
        * module.B[:, i].square().sum()
        * (inputs[module.name] @ module.A[i]).square().mean()
        for module in lora_modules(twin)
        for i in range(module.rank)
    )
    total.backward()
    return torch.cat([p.grad.flatten() for m in lora_modules(twin) for p in (m.A, m.B)])


def test_terms_of_a_micro_batch_share_their_input_dropout(tmp_path):
    """Where every mask keeps everything, only dropout of its own could leave noise."""
    found = []
    for kind in ("loss", "noise-only"):
        model = tiny_lora(trained=True, lora_dropout=0.5)
        objective = Objective(RankMask(1.0).attach(model), kind)
        gradient, _ = trained(model, objective, tmp_path / kind, batch_size=8, accumulation=1)
        found.append(gradient)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
