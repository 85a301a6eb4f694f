"""Validation chooses a step, test examples are scored at it and at the last one, in one run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from subspace_lab import tasks
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.calibration import TEMPERATURES
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.tasks import Example
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.data import IGNORED, tokenize
from subspace_lab.training.memorization import memorization_sets
from subspace_lab.training.trainer import build, train
from tests.tiny import StopAfter


@pytest.fixture(scope="module")
def config(base) -> TrainConfig:
    """A run whose validation loss falls and then rises."""
    return TrainConfig(
        base=str(base),
        base_dtype="fp32",
        rank=4,
        train_size=32,
        eval_size=8,
        test_size=6,
        early_stopping=True,
        steps=8,
        eval_every=2,
        batch_size=4,
        learning_rate=1.0,
        optimizer="sgd",
        max_grad_norm=0,
        lr_schedule="constant",
        cores="never",
    )


def response_loss(base: Path, adapter: Path, examples: list[Example]) -> float:
    """Give the loss in nats per response token, example by example."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    total, count = 0.0, 0
    for row in tokenize(examples, tokenizer, max_length=256):
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            tokens = int((labels != IGNORED).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * tokens
            count += tokens
    return total / count


def nats_at(
    base: Path, adapter: Path, examples: list[Example], temperatures: list[float]
) -> dict[float, float]:
    """Give the loss in nats per response token at each temperature, example by example."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    nats, count = dict.fromkeys(temperatures, 0.0), 0
    for row in tokenize(examples, tokenizer, max_length=256):
        first = row["labels"].count(IGNORED)
        targets = torch.tensor(row["labels"][first:])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, first - 1 : -1]
        for temperature in temperatures:
            nats[temperature] += float(
                cross_entropy(logits / temperature, targets, reduction="sum")
            )
        count += len(targets)
    return {temperature: total / count for temperature, total in nats.items()}


def adapter(run: Run, step: int) -> dict[str, torch.Tensor]:
    return {
        f"{module}.{side}": getattr(run.factors(step, module), side)
        for module in run.modules["module"]
        for side in "AB"
    }


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize(("method", "learning_rate", "last"), [("lora", 1.0, 8), ("pissa", 4.0, 6)])
def test_validation_chooses_and_test_reports(config, base, tmp_path, method, learning_rate, last):
    wanted = dataclasses.replace(config, method=method, learning_rate=learning_rate, steps=last)
    train(wanted, tmp_path / "run")
    run = Run(tmp_path / "run")
    metrics = run.metrics.set_index("step")
    losses = metrics["eval_response_loss"].dropna()
    assert list(losses.index) == list(range(0, last + 1, 2))
    chosen = int(losses.idxmin())
    assert 0 < chosen < last  # else this would show nothing
    assert run.chosen_step == chosen
    assert sorted(run.snapshots) == [0, chosen, last]
    scored = metrics["test_response_loss"].dropna()
    assert sorted(scored.index) == [chosen, last]
    for split, size, column in (("validation", 8, losses), ("test", 6, scored)):
        examples = tasks.load("pocket", split, size=size, seed=tasks.EVALUATION_SEED)
        for step in (chosen, last):
            folder = tmp_path / f"run/snapshots/step-{step:06d}"
            assert response_loss(base, folder, examples) == pytest.approx(column[step], rel=1e-3)
    validation, test = (
        tasks.load("pocket", split, size=size, seed=tasks.EVALUATION_SEED)
        for split, size in (("validation", 8), ("test", 6))
    )
    for step in (chosen, last):
        folder = tmp_path / f"run/snapshots/step-{step:06d}"
        by_temperature = nats_at(base, folder, validation, list(TEMPERATURES))
        best = min(by_temperature, key=by_temperature.__getitem__)
        assert metrics["test_temperature"][step] == best
        (expected,) = nats_at(base, folder, test, [best]).values()
        assert metrics["test_calibrated_loss"][step] == pytest.approx(expected, rel=1e-3)
        assert expected != pytest.approx(scored[step], rel=1e-3)  # else this would show nothing
    assert metrics["test_examples"].dropna().tolist() == [6, 6]
    assert not list((tmp_path / "run/checkpoints").glob("*.safetensors"))
    plain = dataclasses.replace(wanted, test_size=None, early_stopping=False)
    train(plain, tmp_path / "plain")
    assert_same(adapter(Run(tmp_path / "plain"), last), adapter(run, last))
    assert Run(tmp_path / "plain").chosen_step is None


def test_a_resumed_run_chooses_as_the_uninterrupted_one(config, tmp_path):
    wanted = dataclasses.replace(config, checkpoint_every=5)
    train(wanted, tmp_path / "whole")
    whole = Run(tmp_path / "whole")
    assert whole.chosen_step < 5  # before the checkpoint
    _, trainer = build(wanted, tmp_path / "cut")
    trainer.add_callback(StopAfter(5))
    (final_scores,) = (
        callback
        for callback in trainer.callback_handler.callbacks
        if type(callback).__name__ == "FinalScores"
    )
    trainer.remove_callback(final_scores)  # as a run that was killed has none
    trainer.train()
    description = json.loads((tmp_path / "cut/run.json").read_text())
    (tmp_path / "cut/run.json").write_text(json.dumps(description | {"status": "running"}))
    train(wanted, tmp_path / "cut", resume=True)
    cut = Run(tmp_path / "cut")
    assert cut.chosen_step == whole.chosen_step
    assert_same(adapter(cut, cut.chosen_step), adapter(whole, whole.chosen_step))
    columns = ["step", "test_response_loss"]
    np.testing.assert_allclose(
        cut.metrics[columns].dropna(), whole.metrics[columns].dropna(), rtol=1e-5
    )


def test_the_model_keeps_its_last_weights(config, tmp_path):
    model, trainer = build(config, tmp_path / "run")
    trainer.train()
    run = Run(tmp_path / "run")
    assert run.chosen_step != 8
    for module in lora_modules(model):
        torch.testing.assert_close(module.B.detach(), run.factors(8, module.name).B)


def test_without_validation_only_the_last_step_is_scored(config, tmp_path):
    last = dataclasses.replace(
        config, eval_split="none", early_stopping=False, train_split="train+validation"
    )
    train(last, tmp_path / "run")
    run = Run(tmp_path / "run")
    scored = run.metrics.dropna(subset="test_response_loss")
    assert scored["step"].tolist() == [8]
    assert "test_temperature" not in scored
    assert run.chosen_step is None


def test_what_became_of_exchanged_labels_is_scored(config, base, tmp_path):
    noisy = dataclasses.replace(
        config, label_noise=0.25, test_size=None, early_stopping=False, method="droplora"
    )
    train(noisy, tmp_path / "run")
    run = Run(tmp_path / "run")
    last = run.metrics.iloc[-1]
    sizes = {"train_clean": 24, "train_exchanged": 8, "train_true": 8}
    assert {name: last[f"{name}_examples"] for name in sizes} == sizes
    settings = {"size": 32, "seed": 0}
    sets = memorization_sets(
        tasks.load("pocket", "train", label_noise=0.25, **settings),
        tasks.load("pocket", "train", **settings),
    )
    for name, examples in sets.items():
        expected = response_loss(base, tmp_path / "run/snapshots/step-000008", examples)
        assert last[f"{name}_response_loss"] == pytest.approx(expected, rel=1e-3)
    assert last["train_exchanged_response_loss"] != last["train_true_response_loss"]


def test_sets_of_training_examples_under_label_noise():
    true = tasks.load("pocket", "train", size=2000, seed=0)
    sets = memorization_sets(
        tasks.load("pocket", "train", size=2000, seed=0, label_noise=0.5), true
    )
    assert {name: len(examples) for name, examples in sets.items()} == {
        "train_clean": 512, "train_exchanged": 512, "train_true": 512,
    }  # fmt: skip
    own = {example.prompt: example.response for example in true}
    assert all(example.response == own[example.prompt] for example in sets["train_clean"])
    assert not any(example.metadata.get("noisy") for example in sets["train_clean"])
    for wrong, right in zip(sets["train_exchanged"], sets["train_true"], strict=True):
        assert wrong.prompt == right.prompt
        assert wrong.metadata["noisy"]
        assert right.response == own[wrong.prompt] != wrong.response
    assert list(memorization_sets(true, true)) == ["train_clean"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_size": 5, "eval_split": "test"}, "keeps test examples for the end"),
        ({"test_size": 0}, "`test_size` must be at least 1"),
        ({"early_stopping": True}, "set `eval_every`"),
        ({"early_stopping": True, "eval_every": 2, "eval_split": "test"}, "on validation examples"),
    ],
)
def test_choices_that_would_not_be_fair_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**fields)
