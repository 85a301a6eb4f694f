"""Every law of gates on a model: what it computes, and what its draws depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.theory.mask_law import LAWS
from tests.adapters.observed_masks import trainer
from tests.tiny import batch, tiny_lora

RESCALE = {"prefix": "realized", "fixed": "realized"}
LAW = pytest.mark.parametrize("sampling", LAWS)
RANDOM_LAW = pytest.mark.parametrize("sampling", [name for name in LAWS if name != "fixed"])
GRANULARITY = pytest.mark.parametrize("granularity", ["step", "sample", "token"])
RANDOM = pytest.mark.parametrize("granularity", ["sample", "token"])


def rank_mask(sampling, granularity="step", **settings):
    rescale = RESCALE.get(sampling, "keep_prob")
    settings = {"rescale": rescale, "seed": 5} | settings
    return RankMask(0.5, sampling=sampling, granularity=granularity, **settings)


def outputs(sampling, granularity, *, step=3, calls=2, module=0, **settings):
    """Run forward passes of one step and give the gated outputs (calls, rows, tokens, r)."""
    model = tiny_lora(rank=16).train()
    mask = rank_mask(sampling, granularity, **settings).attach(model)
    mask.set_step(step)
    torch.nn.init.ones_(lora_modules(model)[module].A_module.weight)
    seen = []
    target = lora_modules(model)[module].A_module
    target.register_forward_hook(lambda *args: seen.append(args[2] / args[1][0].sum(-1, True)))
    with torch.no_grad():
        for _ in range(calls):
            model(**batch())
    return torch.stack(seen)


def first_gates(model, mask, x):
    """Gates (rows, tokens, r, r) of the first forward pass: every basis vector, the same draw."""
    module = lora_modules(model)[0]
    hook = mask._hooks[module.name]
    rows = []
    for e in torch.eye(module.rank, dtype=x.dtype):
        hook.begin(1)
        rows.append(hook(module.A_module.train(), (x,), e.expand(*x.shape[:-1], -1)))
    return torch.stack(rows, dim=-2)


@LAW
def test_a_step_computes_w0_x_plus_b_g_a_x(sampling):
    model = tiny_lora(trained=True).double()
    with pytest.warns(UserWarning, match="not zero"):
        mask = rank_mask(sampling).attach(model)
    module = lora_modules(model)[0]
    x = torch.randn(2, 5, module.A.shape[1], dtype=torch.float64)
    G = torch.from_numpy(mask.law.step_gates(1, module.name, module.rank))
    G = G if G.dim() == 2 else torch.diag(G)
    dense = module.scaling * module.B @ G @ module.A
    expected = module.layer.base_layer(x) + x @ dense.T
    torch.testing.assert_close(module.layer.train()(x), expected, rtol=1e-12, atol=1e-12)
    full = module.layer.base_layer(x) + x @ (module.scaling * module.B @ module.A).T
    torch.testing.assert_close(module.layer.eval()(x), full, rtol=1e-12, atol=1e-12)


@RANDOM_LAW
@RANDOM
def test_rows_and_tokens_have_gates_of_their_own(sampling, granularity):
    x = torch.zeros(512, 6, 32, dtype=torch.float64)
    model = tiny_lora(rank=4).double()
    mask = rank_mask(sampling, granularity).attach(model)
    gates = first_gates(model, mask, x)
    tokens_differ = (gates != gates[:, :1]).any()
    assert tokens_differ == (granularity == "token")
    mean = gates.mean((0, 1))
    draws = 512 * (6 if granularity == "token" else 1)
    error = 4.5 * gates.std((0, 1)) / draws**0.5
    expected = torch.from_numpy(mask.law.gate_moments(4).mean).diag()
    assert ((mean - expected).abs() <= error + 1e-12).all()


@RANDOM_LAW
@GRANULARITY
def test_gates_depend_on_all_they_should_and_on_nothing_else(sampling, granularity):
    first = outputs(sampling, granularity)
    torch.manual_seed(123)
    assert torch.equal(first, outputs(sampling, granularity))  # a resumed run
    assert torch.equal(first[0], first[1]) == (granularity == "step")  # micro-batches
    for other in ({"step": 4}, {"seed": 6}, {"module": 1}):
        assert not torch.equal(first, outputs(sampling, granularity, **other))


@LAW
@GRANULARITY
def test_processes_share_step_gates_and_no_others(sampling, granularity):
    drawn = []
    for process in (0, 1):
        distributed.init_process_group("fake", rank=process, world_size=2, store=FakeStore())
        drawn.append(outputs(sampling, granularity))
        distributed.destroy_process_group()
    assert torch.equal(drawn[0], outputs(sampling, granularity))
    shared = granularity == "step" or sampling == "fixed"
    assert torch.equal(drawn[0], drawn[1]) == shared


@LAW
@GRANULARITY
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_layer_gets_the_gates_of_its_own_forward_pass(
    sampling, granularity, reentrant
):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_lora(trained=True, rank=4).train()
        with pytest.warns(UserWarning, match="not zero"):
            rank_mask(sampling, granularity).attach(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        losses = [model(**batch(seed=seed)).loss for seed in (0, 1)]
        (losses[0] * losses[1]).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("sampling", ["antithetic", "gaussian", "haar"])
@GRANULARITY
def test_a_resumed_trainer_continues_with_the_same_gates(sampling, granularity, tmp_path):
    losses = []
    for resume in (None, f"{tmp_path}/checkpoint-2"):
        model = tiny_lora(rank=4)
        rank_mask(sampling, granularity, dwell=2).attach(model)
        options = {} if resume else {"save_strategy": "steps", "save_steps": 2}
        running = trainer(model, steps=4, folder=tmp_path, learning_rate=0.1, **options)
        running.train(resume_from_checkpoint=resume)
        logged = {row["step"]: row["loss"] for row in running.state.log_history if "loss" in row}
        losses.append([logged[step] for step in (3, 4)])
    assert losses[0] == losses[1]


@RANDOM
def test_complements_follow_their_masks(granularity):
    first, second = (outputs("antithetic", granularity, step=step)[0] for step in (3, 4))
    torch.testing.assert_close(first + second, torch.full_like(first, 2.0))


@GRANULARITY
def test_bf16_projectors_keep_their_precision(granularity):
    model = tiny_lora(rank=8).bfloat16().train()
    mask = rank_mask("haar", granularity).attach(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.zeros(64, 4, 32, dtype=torch.bfloat16)
        gates = first_gates(model, mask, x).double()
    exact = gates @ gates - 2 * gates  # (2 P)^2 = 2 (2 P)
    assert exact.abs().max() < 0.1
    assert abs(exact.mean()) < 1e-3  # entries are rounded once, without a bias


@pytest.mark.parametrize("rescale", ["keep_prob", "realized"])
def test_evaluation_takes_masks_with_the_rescale_and_gates_as_they_are(rescale):
    model = tiny_lora(trained=True).eval()
    with pytest.warns(UserWarning, match="not zero"):
        mask = rank_mask("bernoulli", rescale=rescale).attach(model)
    kept = {name: torch.from_numpy(kept) for name, kept in mask.masks(2).items()}
    gates = {name: torch.from_numpy(gate) for name, gate in mask.gates(2).items()}
    logits = []
    with torch.no_grad():
        for chosen in (kept, gates):
            with mask.in_evaluation(chosen):
                logits.append(model(**batch()).logits)
    torch.testing.assert_close(*logits)
    mask.set_step(2)
    torch.testing.assert_close(model.train()(**batch()).logits, logits[0])


def test_evaluation_takes_projectors_one_or_an_ensemble():
    model = tiny_lora(trained=True).eval()
    with pytest.warns(UserWarning, match="not zero"):
        mask = rank_mask("haar").attach(model)
    draws = [{n: torch.from_numpy(g) for n, g in mask.gates(step).items()} for step in (1, 2)]
    with torch.no_grad():
        single = []
        for draw in draws:
            with mask.in_evaluation(draw):
                single.append(model(**batch()).logits)
        with mask.in_evaluation({n: torch.stack([d[n] for d in draws]) for n in draws[0]}):
            both = model(**{name: value.repeat(2, 1) for name, value in batch().items()}).logits
    torch.testing.assert_close(both, torch.cat(single))
    assert not torch.allclose(*single)


def test_keep_prob_by_module_and_step_is_what_layers_use():
    model = tiny_lora(rank=16)
    mask = rank_mask(
        "bernoulli", keep_prob_pattern={"v_proj": 1.0}, schedule="early", schedule_steps=2
    ).attach(model)
    for step, masked in ((1, True), (2, True), (3, False)):
        mask.set_step(step)
        for module in lora_modules(model):
            gates = mask._hooks[module.name].multiplier
            expected = {0.0, 2.0} if masked and "v_proj" not in module.name else {1.0}
            assert set(gates.tolist()) == expected
            assert np.array_equal(mask.kept[module.name], gates.numpy() != 0)


def test_a_pattern_that_names_no_module_is_refused():
    with pytest.raises(UserError, match="names no module: 'gate_proj'"):
        rank_mask("bernoulli", keep_prob_pattern={"gate_proj": 1.0}).attach(tiny_lora())


@pytest.mark.parametrize("sampling", ["gaussian", "haar", "fixed"])
def test_gates_that_are_no_masks_leave_nothing_kept(sampling):
    mask = rank_mask(sampling).attach(tiny_lora())
    assert mask.kept == {}
    with pytest.raises(UserError, match="are not masks"):
        mask.masks(1)


@RANDOM
def test_keep_prob_by_module_and_step_holds_for_samples_and_tokens(granularity):
    settings = {"keep_prob_pattern": {"v_proj": 1.0}, "schedule": "late", "schedule_steps": 2}
    for module, step, masked in ((0, 2, False), (0, 3, True), (1, 3, False)):
        found = set(
            outputs("bernoulli", granularity, module=module, step=step, **settings).unique()
        )
        assert {round(float(gate), 4) for gate in found} == ({0.0, 2.0} if masked else {1.0})
