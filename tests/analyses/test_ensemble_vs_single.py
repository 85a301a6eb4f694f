"""Ensembles of masks against single masks: identities that hold for every model."""

from __future__ import annotations

import contextlib
import json
import math
import shutil

import pandas as pd
import pytest
import torch

from analyses import ensemble_vs_single, learning_curves
from analyses.ensemble_vs_single.predictors import FIRST_DRAW, predictors
from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.calibration import TEMPERATURES
from subspace_lab.errors import UserError
from subspace_lab.evaluation.likelihood import response_loss
from subspace_lab.evaluation.trained_model import evaluation_examples, load_trained
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import ratio_interval
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import IGNORED, tokenize
from subspace_lab.training.trainer import build, train
from tests.analyses.documented import documented


@pytest.fixture(scope="module")
def pocket_run(tmp_path_factory):
    """A short masked run of the pocket model, not rescaled, so that scale and mask law matter."""
    out = tmp_path_factory.mktemp("runs") / "eq2"
    config = TrainConfig(
        method="droplora", rescale=False, keep_prob=0.5, steps=8, train_size=64, eval_size=12,
        learning_rate=1e-2, cores="full",
    )  # fmt: skip
    train(config, out)
    return Run(out)


@pytest.fixture(scope="module")
def table(pocket_run):
    return ensemble_vs_single.compute(pocket_run, masks=4, examples=12, validation=8)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 25).view(2, 12)).logits


def loss(table, predictor, **where):
    rows = table[table["predictor"] == predictor]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["loss"].mean()


def test_base_full_and_single_equal_an_evaluation_by_hand(pocket_run, table):
    rows = evaluation_examples(pocket_run, split="test", size=12)
    trained = load_trained(pocket_run)
    by_hand = {"full": response_loss(trained.model, trained.tokenizer, rows).per_token}
    with trained.model.disable_adapter():
        by_hand["base"] = response_loss(trained.model, trained.tokenizer, rows).per_token
    # One mask by hand: zero the dropped columns of B.
    with pytest.warns(UserWarning):
        masks = RankMask(0.5, rescale=False).attach(trained.model)
    kept = masks.masks(FIRST_DRAW + 2)
    masks.detach()
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if "lora_B" in name:
                module = name.removeprefix("base_model.model.").split(".lora_B")[0]
                parameter *= torch.from_numpy(kept[module])
    single = response_loss(trained.model, trained.tokenizer, rows).per_token
    for predictor, truth in by_hand.items():
        assert math.isclose(loss(table, predictor), truth, rel_tol=1e-5)
    assert math.isclose(loss(table, "single", draw=2), single, rel_tol=1e-5)


def test_single_masks_lose_the_jensen_gap_against_the_geometric_ensemble(table):
    geometric = table[table["predictor"] == "geometric"].iloc[0]
    assert geometric["jensen_gap"] > 0
    expected = geometric["loss"] + geometric["jensen_gap"]
    assert math.isclose(loss(table, "single"), expected, rel_tol=1e-5)
    assert loss(table, "arithmetic") <= loss(table, "single")


def test_the_scale_curve_joins_base_and_full(pocket_run, table):
    scales = table[table["predictor"] == "scaled"]["scale"]
    assert {0.5, 0.75, 1.25, 1.5} <= set(scales)
    trained = load_trained(pocket_run)
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if "lora_B" in name:
                parameter *= 0.5
    rows = evaluation_examples(pocket_run, split="test", size=12)
    half = response_loss(trained.model, trained.tokenizer, rows).per_token
    assert math.isclose(loss(table, "scaled", scale=0.5), half, rel_tol=1e-5)


def token_predictions(run, predictor, split, size):
    """Give logits and targets of the response tokens and the number of each token's example."""
    trained = load_trained(run)
    logits, targets, owners = [], [], []
    off = trained.model.disable_adapter if predictor == "base" else contextlib.nullcontext
    for i, example in enumerate(evaluation_examples(run, split=split, size=size)):
        (row,) = tokenize([example], trained.tokenizer, max_length=256)
        first = row["labels"].count(IGNORED)
        with torch.no_grad(), off():
            output = trained.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
        logits.append(output[first - 1 : -1])
        targets += row["labels"][first:]
        owners += [i] * (len(row["labels"]) - first)
    return torch.cat(logits), torch.tensor(targets), torch.tensor(owners)


def nats(logits, targets, temperature):
    return torch.nn.functional.cross_entropy(logits / temperature, targets, reduction="none")


@pytest.mark.parametrize("predictor", ["base", "full"])
def test_calibration_equals_an_evaluation_by_hand(pocket_run, table, predictor):
    row = table[table["predictor"] == predictor].iloc[0]
    validation, test = (
        token_predictions(pocket_run, predictor, *which)
        for which in (("validation", 8), ("test", 12))
    )

    def best(logits, targets, _):
        return min(TEMPERATURES, key=lambda t: float(nats(logits, targets, t).mean()))

    assert row["temperature"] == best(*validation) != best(*test) == row["oracle_temperature"]
    logits, targets, owners = test
    for column, temperature in (
        ("calibrated_loss", best(*validation)),
        ("oracle_loss", best(*test)),
    ):
        expected = nats(logits, targets, temperature)
        assert row[column] == pytest.approx(float(expected.mean()), rel=1e-5)
    for prefix, temperature in (("", 1.0), ("calibrated_", best(*validation))):
        p = (logits / temperature).softmax(-1)
        truth = torch.nn.functional.one_hot(targets, p.shape[-1])
        assert row[f"{prefix}brier"] == pytest.approx(float((p - truth).square().sum(-1).mean()))
        confidence, guess = p.max(-1)
        error = 0.0
        for low in range(15):
            inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
            if inside.any():
                gap = (guess == targets)[inside].double().mean() - confidence[inside].mean()
                error += float(inside.double().mean() * gap.abs())
        assert row[f"{prefix}ece"] == pytest.approx(error, rel=1e-4)
    full = token_predictions(pocket_run, "full", "test", 12)
    temperature_of_full = table[table["predictor"] == "full"]["temperature"].iloc[0]
    ours, others = (
        torch.zeros(12, dtype=torch.float64).index_add(0, owners, nats(z, targets, t))
        for z, t in ((logits, row["temperature"]), (full[0], temperature_of_full))
    )
    expected = ratio_interval(ours - others, owners.bincount())
    for column, value in (
        ("", expected.estimate), ("_low", expected.low), ("_high", expected.high),
    ):  # fmt: skip
        assert row[f"difference{column}"] == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_a_mean_over_single_masks_is_paired_with_the_full_update(table):
    singles = table[table["predictor"] == "single"]
    mean = table[table["predictor"] == "singles"].iloc[0]
    for column in ("loss", "ece", "calibrated_loss", "difference"):
        assert mean[column] == pytest.approx(singles[column].mean())
    # An interval of the mean over masks, not the mean of intervals of single ones.
    assert singles["difference_low"].min() < mean["difference_low"] < mean["difference"]
    width = singles["difference_high"] - singles["difference_low"]
    assert mean["difference_high"] - mean["difference_low"] < width.mean()
    full = table[table["predictor"] == "full"].iloc[0]
    assert mean["difference"] == pytest.approx(mean["calibrated_loss"] - full["calibrated_loss"])


def test_ensembles_are_pooled_and_then_calibrated(table):
    for name in ("arithmetic", "geometric"):
        (row,) = table[table["predictor"] == name].to_dict("records")
        assert row["oracle_loss"] <= min(row["loss"], row["calibrated_loss"])
        assert row["temperature"] in TEMPERATURES


def test_no_temperature_is_chosen_on_examples_of_training(pocket_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(pocket_run.path, folder)
    description = json.loads((folder / "run.json").read_text())
    description["config"] |= {"train_split": "train+validation", "eval_split": "none"}
    (folder / "run.json").write_text(json.dumps(description))
    table = ensemble_vs_single.compute(Run(folder), masks=1, examples=2)
    assert table["temperature"].isna().all() and table["difference_low"].isna().all()
    assert set(table["validation_examples"]) == {0}
    assert table["oracle_loss"].notna().all() and table["ece"].notna().all()


def test_columns_and_figures(pocket_run, table):
    assert set(table.columns) == documented("ensemble_vs_single")
    assert len(ensemble_vs_single.plot(table).axes) == 3
    curves = learning_curves.compute(pocket_run)
    assert curves["loss"].notna().sum() == 8
    assert len(learning_curves.plot(curves).axes) == 3


def test_the_calibration_figure_shows_each_predictor_before_and_after(table):
    plot = ensemble_vs_single.ANALYSIS.plots["calibration"]
    seeds = [table.assign(run=f"seed {i}", ece=table["ece"] + i / 10) for i in range(2)]
    points = plot.shown(pd.concat(seeds).assign(configuration="masks"))
    assert len(points) == 15 and set(points["seeds"]) == {2}
    place = ["panel", "kind", "predictor"]
    before, after = (
        points.set_index(place).loc["calibration error"].loc[kind]
        for kind in ("as it is", "at the validated temperature")
    )
    full = table[table["predictor"] == "full"].iloc[0]
    assert before.loc["full", "value"] == pytest.approx(full["ece"] + 0.05)
    half = before.loc["full", "high"] - before.loc["full", "value"]
    assert half == pytest.approx(12.706 * 0.05, rel=1e-3)  # t of one degree of freedom
    assert after.loc["full", "value"] == pytest.approx(full["calibrated_ece"])
    assert len(plot(table).axes) == 2
    unvalidated = table.assign(temperature=float("nan"), calibrated_ece=float("nan"))
    assert set(plot.shown(unvalidated)["kind"]) == {"as it is"}
    alike = unvalidated.assign(ece=[0.12 + i / 1000 for i in range(len(table))])
    figure = plot(alike)
    (axis,) = figure.axes
    highest = plot.shown(alike)["value"].max()
    assert axis.get_ylim() == (0, pytest.approx(1.05 * highest))
    names = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert "as it is" in names and "at the validated temperature" not in names


def test_what_the_model_computed_in_stands_in_every_result(pocket_run, table, command, tmp_path):
    assert set(table["dtype"]) == {"fp32"}
    few = [
        "--masks",
        "1",
        "--examples",
        "2",
        "--validation",
        "0",
        "--dtype",
        "bf16",
        "--out",
        tmp_path,
    ]
    done = command("ensemble_vs_single", "--run", pocket_run.path, *few)
    assert done.code == 0, done.err
    rounded = pd.read_parquet(tmp_path / "ensemble_vs_single.parquet")
    assert set(rounded["dtype"]) == {"bf16"}
    exact = ensemble_vs_single.compute(pocket_run, masks=1, examples=2, validation=0)
    difference = (rounded["loss"] - exact["loss"]).abs()
    assert 1e-4 < difference.max() < 0.2
    written = json.loads((tmp_path / "ensemble_vs_single.json").read_text())
    assert written["arguments"]["dtype"] == "bf16"
    assert written["runs"][0]["config"]["base_dtype"] == "fp32"  # of the training
    figure = ensemble_vs_single.plot(rounded)
    assert "1 mask, bf16" in figure.get_suptitle()


def test_steps_are_chosen_among_the_snapshots(pocket_run, command, tmp_path):
    few = ["--masks", "1", "--examples", "2", "--validation", "0", "--out", tmp_path]
    found = command("ensemble_vs_single", "--run", pocket_run.path, "--steps", "every:2", *few)
    assert found.code == 0, found.err
    table = pd.read_parquet(tmp_path / "ensemble_vs_single.parquet")
    assert set(table["step"]) == {0, 8} and set(table["split"]) == {"test"}


def test_what_it_refuses(pocket_run):
    with pytest.raises(UserError, match="at least 1"):
        ensemble_vs_single.compute(pocket_run, masks=0)
    for wrong in ({"batch_size": 0}, {"seed": -1}, {"validation": -1}):
        with pytest.raises(UserError, match="at least"):
            ensemble_vs_single.compute(pocket_run, **wrong)
    with pytest.raises(UserError, match="snapshot of step 3"):
        ensemble_vs_single.compute(pocket_run, steps=[3])
    with pytest.raises(UserError, match="whole models"):
        ensemble_vs_single.compute(pocket_run, modules=["q_proj"])


@pytest.mark.usefixtures("processor")
@pytest.mark.filterwarnings("ignore:the adapter's B A is not zero")
@pytest.mark.parametrize("sampling", ["bernoulli", "exact-k"])
@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_masks_on_a_split_base_are_those_of_training(tmp_path, method, sampling):
    config = TrainConfig(
        method=method, rank_mask=True, keep_prob=0.25, rescale=True, sampling=sampling, steps=3,
        train_size=32, eval_split="none", learning_rate=1e-3, cores="light",
    )  # fmt: skip
    model, trainer = build(config, tmp_path / "run")
    trainer.train()
    live, trained = find_rank_mask(model), load_trained(Run(tmp_path / "run"))
    loaded = trained.model
    with torch.no_grad():  # without the rounding of the residual base, which layers amplify
        for module, converted in zip(lora_modules(model), lora_modules(loaded), strict=True):
            A0, B0 = converted.A[module.rank :].double(), -converted.B[:, module.rank :].double()
            residual = module.layer.get_base_layer().weight
            exact = converted.layer.get_base_layer().weight.double() - module.scaling * B0 @ A0
            assert (exact - residual).abs().max() < 1e-6
            residual.data = exact
    model.double(), loaded.double()
    run = Run(tmp_path / "run")
    contexts = predictors(run, trained, law=run.mask_law, masks=3)
    half = {name: torch.full((r,), 0.5) for name, r in live.ranks.items()}
    kept = {n: torch.from_numpy(mask) for n, mask in live.masks(FIRST_DRAW + 2).items()}
    for name, values in {("single", 1, 1.0, 2): kept, ("scaled", 0, 0.5, -1): half}.items():
        with live.in_evaluation(values):
            truth = logits(model)
        with contexts[name]():
            torch.testing.assert_close(logits(loaded), truth, atol=1e-5, rtol=0)
        assert (truth - logits(model)).abs().max() > 1e-2
    assert all(math.isnan(p.scale) == (p.name == "base") for p in contexts)
