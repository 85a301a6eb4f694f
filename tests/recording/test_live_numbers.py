"""What a Trainer logs of a record equals what the analyses compute from it later."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments, trainer

from analyses import effective_rank, frame_drift, regulariser
from subspace_lab.errors import UserError
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.recording.trainer_logs import IN_LOGS, NumbersInLogs
from subspace_lab.runs.run import Run
from subspace_lab.runs.step_numbers import NAMES, medians, step_numbers
from tests.recording.conftest import train_tiny
from tests.tiny import batch, tiny_lora


class Logs(TrainerCallback):
    """Keeps what the Trainer logged of losses, as later callbacks see it and in its history."""

    def on_log(self, args, state, control, *, logs, **kwargs):
        self.seen = {
            **getattr(self, "seen", {}),
            **({state.global_step: dict(logs)} if "loss" in logs else {}),
        }
        self.history = state.log_history


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run that logs every second step, and records cores at every third."""
    folder, logs = tmp_path_factory.mktemp("logged") / "run", Logs()
    options = {"log_every": 2, "log_by_projection": True, "cores": "every:3"}
    train_tiny(folder, callbacks=[logs], **options)
    return Run(folder), logs


def by_the_analyses(
    run: Run, step: int, rows: str = "projection == projection"
) -> dict[str, float]:
    """The numbers of a step as the tables of the analyses have them."""
    ranks = effective_rank.compute(run, steps=[step], measures=["entropy"]).query(rows)
    drift = frame_drift.compute(run, steps=[step]).query(rows).query("since == 'previous'")
    balance = regulariser.compute(run, steps=[step]).query(rows)
    modules = run.modules.query(rows)["module"]
    lengths = [float(run.core(step, module).change_norm("previous")) for module in modules]
    shares = [float(run.mask(step, module).mean()) for module in modules] if run.mask_steps else []
    found = {
        "effective_rank": ranks.query("matrix == 'update'")["value"].median(),
        "step_length": float(torch.tensor(lengths, dtype=torch.float64).quantile(0.5)),
        "row_drift": drift.query("side == 'row'")["max_angle"].median(),
        "column_drift": drift.query("side == 'column'")["max_angle"].median(),
        "balance_ratio": balance["balance_ratio"].median(),
    }
    if shares:
        found["kept_share"] = float(torch.tensor(shares, dtype=torch.float64).quantile(0.5))
    return found


def test_what_is_logged_is_what_the_analyses_find(logged):
    run, logs = logged
    assert run.steps == [0, 2, 3, 4, 6]  # those that are logged, those that are scheduled
    for step in (2, 4, 6):
        overall = {name: logs.seen[step][name] for name in NAMES}
        assert overall == pytest.approx(by_the_analyses(run, step), rel=1e-9)
        for projection in ("q_proj", "v_proj", "down_proj"):
            found = {name: logs.seen[step].get(f"{name}/{projection}") for name in NAMES}
            rows = f"projection == '{projection}'"
            assert found == pytest.approx(by_the_analyses(run, step, rows), rel=1e-9)
    (ranks,) = {len(logs.seen[step]) for step in (2, 4, 6)}
    assert ranks > len(NAMES) * 4 and logs.seen[2]["effective_rank"] > 1


def test_it_stands_beside_the_loss_at_its_steps_only(logged):
    _, logs = logged
    for step in range(1, 7):
        assert "loss" in logs.seen[step]
        assert ("effective_rank" in logs.seen[step]) == (step % 2 == 0)
    kept = [entry for entry in logs.history if "effective_rank" in entry]
    assert [entry["step"] for entry in kept] == [2, 4, 6]
    assert [entry["effective_rank"] for entry in kept] == [
        logs.seen[step]["effective_rank"] for step in (2, 4, 6)
    ]


def test_off_by_default(tmp_path):
    logs = Logs()
    train_tiny(tmp_path / "run", steps=2, callbacks=[logs])
    assert not any(name in entry for entry in logs.history for name in NAMES)


def test_a_split_base_logs_its_update_not_the_product(tmp_path):
    model = tiny_lora(init_lora_weights="pissa").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    recorder = SubspaceRecorder(tmp_path / "run", log_every=1)
    with recorder.start(model):
        model(**batch()).loss.backward()
        optimizer.step()
        numbers = recorder.step(1)
    run = Run(tmp_path / "run")
    expected = by_the_analyses(run, 1)
    assert numbers == pytest.approx(expected, rel=1e-9)
    product = medians(step_numbers(run.cores(steps=[1]), {}, since_start=False))
    assert abs(product["effective_rank"] - expected["effective_rank"]) > 0.1


def test_a_trainer_logs_at_these_steps_whatever_its_own_interval_in_every_process(tmp_path):
    logs = Logs()
    arguments = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=4, logging_steps=3, report_to=[], disable_tqdm=True
    )
    rows = [{"input_ids": row, "labels": row} for row in batch(rows=8)["input_ids"]]
    recorder = SubspaceRecorder(tmp_path / "run", log_every=2)
    Trainer(
        model=tiny_lora(), args=arguments, train_dataset=rows, callbacks=[recorder, logs]
    ).train()
    assert {step: "effective_rank" in found for step, found in logs.seen.items()} == {
        2: True, 3: False, 4: True,
    }  # fmt: skip
    assert "kept_share" not in logs.seen[2]  # no masks
    metrics = Run(tmp_path / "run").metrics.set_index("step")
    assert metrics["window_loss"].dropna().index.tolist() == [2]
    assert metrics["loss"].dropna().index.tolist() == [3, 4]


def test_numbers_wait_for_the_next_log_of_a_loss_and_are_in_one_only():
    model, state, numbers = torch.nn.Linear(1, 1), TrainerState(), NumbersInLogs()

    def logged(**logs: float) -> dict[str, float]:
        state.log_history.append(dict(logs))
        numbers.on_log(None, state, None, logs=logs, model=model)
        assert logs == state.log_history[-1]
        return logs

    numbers.on_train_begin(None, state, None, model=model)
    numbers.add(model, {"effective_rank": 2.0})
    assert logged(eval_loss=1.0) == {"eval_loss": 1.0}
    assert logged(loss=1.0) == {"loss": 1.0, "effective_rank": 2.0}
    assert logged(loss=0.5) == {"loss": 0.5}


def test_a_trainer_whose_logs_are_out_of_reach_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", trainer.DEFAULT_CALLBACKS[:1])
    with pytest.raises(UserError, match="import it first"):
        train_tiny(tmp_path / "run", log_every=1)
    assert not (tmp_path / "run" / "run.json").exists()
    assert IN_LOGS not in trainer.DEFAULT_CALLBACKS


def test_one_module_that_is_far_away_does_not_move_the_medians():
    found = medians(
        pd.DataFrame(
            {
                "projection": ["q_proj"] * 3 + ["v_proj"] * 3,
                **{name: [1.0, 2.0, 90.0, 4.0, 6.0, 800.0] for name in NAMES},
                "kept_share": math.nan,
            }
        ),
        by_projection=True,
    )
    expected = {"": 5.0, "/q_proj": 2.0, "/v_proj": 6.0}
    names = set(NAMES) - {"kept_share"}
    assert found == {f"{name}{of}": value for name in names for of, value in expected.items()}


def test_modules_that_are_not_finite_are_left_out(logged):
    run, _ = logged
    (batch_of_run,) = run.cores(steps=[4])
    whole = step_numbers([batch_of_run], {}, since_start=False)
    batch_of_run.core.row.R[0, 0] = math.nan
    rest = step_numbers([batch_of_run], {}, since_start=False)
    assert rest[["module", "effective_rank"]].equals(
        whole[["module", "effective_rank"]].iloc[1:].reset_index(drop=True)
    )
    batch_of_run.core.row.R[:] = math.nan
    assert medians(step_numbers([batch_of_run], {}, since_start=True)) == {}
