"""`report_to` and `log_every` of a configured training: trackers get the record's numbers."""

from __future__ import annotations

import dataclasses

import pytest

from subspace_lab.configurations import label_configurations
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.runs.step_numbers import NAMES, medians, step_numbers
from subspace_lab.training import arguments
from subspace_lab.training.arguments import training_arguments
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.event_files import read_scalars


@pytest.fixture
def config(base) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        base_dtype="fp32",
        method="droplora",
        rank=4,
        train_size=16,
        steps=4,
        batch_size=4,
        learning_rate=1e-2,
        eval_split="none",
    )


@pytest.mark.parametrize("method", ["droplora", "pissa"])
def test_tensorboard_holds_the_effective_rank_of_the_record(config, tmp_path, monkeypatch, method):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    tracked = dataclasses.replace(
        config, method=method, report_to=["tensorboard"], log_every=2, cores="every:4"
    )
    train(tracked, tmp_path / "run")
    scalars, run = read_scalars(tmp_path / "run"), Run(tmp_path / "run")
    assert run.steps == [0, 2, 4] and list(scalars["train/loss"]) == [1, 2, 3, 4]
    for step in (2, 4):
        masks = {m: run.mask(step, m) for m in run.modules["module"]} if run.mask_steps else {}
        table = step_numbers(run.cores(steps=[step]), masks, since_start=method == "pissa")
        numbers = medians(table)
        assert numbers.keys() == {*NAMES} - ({"kept_share"} if method == "pissa" else set())
        for name, value in numbers.items():
            assert scalars[f"train/{name}"][step] == pytest.approx(value, rel=1e-6)
    assert list(scalars["train/effective_rank"]) == [2, 4]


def test_trackers_are_off_by_default(config, tmp_path):
    made = training_arguments(config, tmp_path)
    assert made.report_to == [] and config.log_every == 0


def test_a_tracker_that_is_unknown_or_not_installed_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["mlflow"])
    made = training_arguments(dataclasses.replace(config, report_to=["mlflow"]), tmp_path / "run")
    assert made.report_to == ["mlflow"] and made.run_name == "run"
    for name, words in (("trackio", "pip install trackio"), ("abacus", "choose among")):
        with pytest.raises(UserError, match=f"`report_to` {name}.*{words}"):
            train(dataclasses.replace(config, report_to=[name]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_of_a_run_without_cores_are_refused(config, tmp_path):
    for settings in ({"cores": "never"}, {"method": "full"}):
        with pytest.raises(UserError, match="`log_every`"):
            train(dataclasses.replace(config, log_every=1, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_that_differ_in_tracking_share_a_configuration(config):
    tracked = dataclasses.replace(config, report_to=["tensorboard"], log_every=2)
    labels = label_configurations({"a": config.to_dict(), "b": tracked.to_dict()})
    assert labels["a"] == labels["b"]
