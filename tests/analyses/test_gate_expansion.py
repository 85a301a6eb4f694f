"""The expansion in the gates on a trained pocket model, and the closure behind it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pandas as pd
import pytest
import torch

from analyses import gate_expansion
from analyses.gate_expansion.gated_loss import GatedLoss
from analyses.mask_theory.inference import Tables
from analyses.mask_theory.inference import gate_gap as predicted_gap
from subspace_lab.adapters.mask import RankMask
from subspace_lab.errors import UserError
from subspace_lab.evaluation.likelihood import response_loss
from subspace_lab.evaluation.trained_model import evaluation_examples, load_trained
from subspace_lab.runs.run import Run
from subspace_lab.theory.gates import gate_gap
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.analyses.documented import documented

SHORT = {"steps": 4, "train_size": 32, "eval_size": 4, "learning_rate": 1e-2, "rank": 2}


def short_run(folder, **fields) -> Run:
    train(TrainConfig(cores="light", **(SHORT | fields)), folder)
    return Run(folder)


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Run:
    """Step masks, not rescaled, so that the mean gate is not 1."""
    folder = tmp_path_factory.mktemp("gates") / "eq2"
    return short_run(folder, method="droplora", rescale=False, snapshots="every:2")


def gated(run: Run, granularity: str = "step") -> tuple[GatedLoss, list]:
    trained, rows = load_trained(run), evaluation_examples(run)
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))
    return GatedLoss(trained, rows, ranks=ranks, granularity=granularity), rows


@pytest.mark.usefixtures("processor")
def test_the_closure_is_the_model_s_loss_under_a_mask(masked):
    trained, rows = load_trained(masked), evaluation_examples(masked)
    with pytest.warns(UserWarning, match="changes the model's function"):
        mask = RankMask(0.5, rescale=False).attach(trained.model)
    kept = {name: torch.from_numpy(each) for name, each in mask.masks(9).items()}
    with mask.in_evaluation(kept):
        expected = response_loss(trained.model, trained.tokenizer, rows).per_token
    mask.detach()
    loss, _ = gated(masked)
    with loss:
        found = loss(*(kept[name].float() for name in masked.modules["module"]))
        full = loss(*(torch.ones_like(gate) for gate in loss.gates))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert full.item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("processor")
def test_the_gap_over_all_masks_is_that_of_models_without_the_dropped_directions(tmp_path):
    """One direction in each of four modules: 2^4 models, each with columns of B set to zero."""
    run = short_run(tmp_path / "small", method="droplora", rank=1, targets=["q_proj"], eval_size=1)
    trained, rows = load_trained(run), evaluation_examples(run)
    names = list(run.modules["module"])
    columns = [
        next(p for key, p in trained.model.named_parameters() if f"{name}.lora_B" in key)
        for name in names
    ]
    whole = [column.detach().clone() for column in columns]

    def loss_under(gates: tuple[float, ...]) -> float:
        with torch.no_grad():
            for column, each, gate in zip(columns, whole, gates, strict=True):
                column.copy_(gate * each)
        return response_loss(trained.model, trained.tokenizer, rows).per_token

    losses = [loss_under(gates) for gates in itertools.product([0.0, 2.0], repeat=len(names))]
    gap = sum(losses) / len(losses) - loss_under((1.0,) * len(names))
    loss, _ = gated(run)
    with loss:
        found = gate_gap(loss, loss.gates, keep_prob=0.5, rescale=2.0)
    assert found.measured == pytest.approx(gap, rel=0.02, abs=1e-6)
    # So few gates of a short run hardly change the loss, and the orders tell the gap.
    assert float(found.orders.sum()) == pytest.approx(gap, rel=0.05)


def test_a_run_that_was_trained_in_bf16_is_differentiated_in_fp32(tmp_path, monkeypatch):
    run = short_run(tmp_path / "bf16", method="droplora", base_dtype="bf16")
    dtypes = set()

    def spy(loss: GatedLoss, *gates: torch.Tensor) -> torch.Tensor:
        dtypes.update(parameter.dtype for parameter in loss._model.parameters())
        return original(loss, *gates)

    original = GatedLoss.__call__
    monkeypatch.setattr(GatedLoss, "__call__", spy)
    table = gate_expansion.compute(run, masks=2, examples=1)
    assert dtypes == {torch.float32}
    assert table["dtype"].tolist() == ["fp32"]


@pytest.mark.parametrize("granularity", ["step", "sample", "token"])
def test_the_second_derivative_is_that_of_finite_differences(masked, granularity):
    loss, _ = gated(masked, granularity)
    with loss:
        point = [torch.full_like(gate, 0.5).requires_grad_() for gate in loss.gates]
        generator = torch.Generator().manual_seed(1)
        step = [torch.randn(gate.shape, generator=generator) for gate in point]
        slope = torch.autograd.grad(loss(*point), point, create_graph=True)
        inner = sum((g * z).sum() for g, z in zip(slope, step, strict=True))
        curvature = torch.autograd.grad(inner, point)
        exact = sum(float((c * z).sum()) for c, z in zip(curvature, step, strict=True))
        h = 0.05

        def slope_at(t: float) -> float:
            moved = [
                (p + t * z).detach().requires_grad_() for p, z in zip(point, step, strict=True)
            ]
            found = torch.autograd.grad(loss(*moved), moved)
            return sum(float((g * z).sum()) for g, z in zip(found, step, strict=True))

        # Fourth-order central difference of the slope.
        near, far = slope_at(h) - slope_at(-h), slope_at(2 * h) - slope_at(-2 * h)
        assert (8 * near - far) / (12 * h) == pytest.approx(exact, rel=0.02, abs=1e-4)


@pytest.mark.usefixtures("processor")
def test_the_start_that_pissa_subtracts_has_no_gate(tmp_path):
    run = short_run(tmp_path / "pissa", method="pissa", rank_mask=True)
    loss, rows = gated(run)
    assert [gate.shape for gate in loss.gates] == [(2,)] * len(run.modules)
    with loss:
        full = loss(*(torch.ones_like(gate) for gate in loss.gates)).item()
    trained = load_trained(run)
    assert full == pytest.approx(
        response_loss(trained.model, trained.tokenizer, rows).per_token, rel=1e-5
    )


def test_the_table_and_what_mask_theory_makes_of_it(masked, command, tmp_path):
    done = command(
        "gate_expansion", "--run", masked.path, "--steps", "0,4", "--masks", "3", "--examples", "2"
    )
    assert done.code == 0, done.err
    table = pd.read_parquet(masked.output_folder / "gate_expansion.parquet")
    start, end = table.iloc[0], table.iloc[1]
    assert (start["step"], end["step"]) == (0, 4)
    assert set(table.columns) == documented("gate_expansion")
    # B = 0 at the start: gates change nothing, at any order.
    assert start["measured"] == start["second"] == start["fourth"] == 0
    assert end["measured"] != 0
    assert (end["masks"], end["examples"], end["factor"], end["assumed"]) == (3, 2, 1.0, False)
    assert "measured; not shown to hold" in [  # on two examples
        text.get_text() for text in gate_expansion.plot(table).legends[0].texts
    ]
    row = predicted_gap(Tables(None, table))
    assert predicted_gap.theorem == "T11"
    assert (row.predicted, row.measured) == (end["second"], end["measured"])


def test_examples_in_one_batch_give_the_gap_of_each_alone(masked, monkeypatch):
    calls, original = [], GatedLoss.__call__
    monkeypatch.setattr(GatedLoss, "__call__", lambda *a: calls.append(1) or original(*a))
    together = gate_expansion.compute(masked, masks=2, examples=2)
    batched = len(calls)
    monkeypatch.setattr(gate_expansion, "BATCH_TOKENS", 1)
    alone = gate_expansion.compute(masked, masks=2, examples=2)
    assert len(calls) == 3 * batched
    numbers = ["measured", "measured_error", "second", "third", "fourth"]
    expected = alone[numbers].to_numpy()
    assert together[numbers].to_numpy() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_batch_has_few_tokens(masked, monkeypatch):
    trained, (example, *_) = load_trained(masked), evaluation_examples(masked)
    long = replace(example, prompt=20 * example.prompt)
    loss, _ = gated(masked)
    monkeypatch.setattr(gate_expansion, "BATCH_TOKENS", 4 * loss._batch.input_ids.shape[1])
    found = gate_expansion.batches_of(trained, [example, example, long, example, example])
    assert [len(batch) for batch in found] == [2, 1, 2]


def test_a_valid_expansion_is_tested_and_an_invalid_one_is_not():
    table = pd.DataFrame(
        {
            "step": [3], "measured": [0.1], "second": [0.1], "third": [0.001], "fourth": [0.002],
            "excess_error": [0.002], "tolerance": [0.2], "masks": [8],
        }
    )  # fmt: skip
    valid = predicted_gap(Tables(None, table))
    assert valid.agrees
    wrong = predicted_gap(Tables(None, table.assign(measured=0.15)))
    assert wrong.agrees is False
    invalid = predicted_gap(Tables(None, table.assign(fourth=0.08)))
    assert invalid.agrees is None
    assert "fourth order" in invalid.basis


def test_bad_arguments_are_refused(masked, tmp_path):
    with pytest.raises(UserError, match="`masks` must be at least 2"):
        gate_expansion.compute(masked, masks=1)
    with pytest.raises(UserError, match="omit `modules`"):
        gate_expansion.compute(masked, modules=["q_proj"])
    exact = short_run(tmp_path / "k", method="droplora", sampling="exact-k")
    with pytest.raises(UserError, match="independent masks of one keep_prob"):
        gate_expansion.compute(exact)


def test_few_examples_do_not_speak_for_the_model():
    assert gate_expansion.verdict(trustworthy=True, examples=8) == "holds on 8 examples"
    assert gate_expansion.verdict(trustworthy=True, examples=1).startswith(
        "holds on 1 example, too few"
    )
    assert "not shown to hold" in gate_expansion.verdict(trustworthy=False, examples=8)


@pytest.mark.parametrize(("examples", "filled"), [(1, 0), (8, 1)])
def test_a_filled_marker_needs_enough_examples(examples, filled):
    row = {"run": "a", "step": 4, "trustworthy": True, "examples": examples, "split": "test"}
    row |= {"granularity": "step", "keep_prob": 0.5, "assumed": False, "masks": 4, "dtype": "fp32"}
    row |= dict.fromkeys(("measured", "measured_error", "second", "second_error"), 0.1)
    axis = gate_expansion.plot(pd.DataFrame([row])).axes[0]
    drawn = [line.get_fillstyle() for line in axis.lines if line.get_linestyle() == "None"]
    shown = [
        line for line in axis.lines if line.get_linestyle() == "None" and len(line.get_xdata())
    ]
    assert {"full", "none"} <= set(drawn)
    assert [line.get_fillstyle() for line in shown] == ["full" if filled else "none"]
