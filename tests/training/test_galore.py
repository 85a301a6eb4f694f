"""GaLore runs: the recorded projections are those in which the weights moved."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil

import numpy as np
import pytest
import scipy.linalg
import torch
from transformers import TrainerCallback

from analyses import effective_rank, frame_drift, subspace_motion
from subspace_lab.errors import UserError
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.projections import projection_steps, read_projections
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.tiny import StopAfter

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("galore_torch") is None, reason="the extra galore is missing"
    ),
    pytest.mark.filterwarnings("ignore:method galore has no rank cores"),
    pytest.mark.filterwarnings("ignore::FutureWarning:galore_torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class KeepGradients(TrainerCallback):
    """Keeps the gradients that the optimizer sees."""

    def __init__(self) -> None:
        self.of_step: dict[int, dict[str, torch.Tensor]] = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.of_step[state.global_step + 1] = {
            name.removesuffix(".weight"): parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }


@pytest.fixture(scope="module")
def config(base) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        method="galore",
        rank=4,
        galore_refresh=3,
        galore_scale=1,
        train_size=32,
        eval_size=8,
        steps=8,
        batch_size=4,
        learning_rate=1e-3,
        snapshots="every:1",
        checkpoint_every=4,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> tuple[Run, KeepGradients]:
    folder = tmp_path_factory.mktemp("galore") / "run"
    gradients = KeepGradients()
    _, trainer = build(config, folder)
    trainer.add_callback(gradients)
    trainer.train()
    return Run(folder), gradients


def change(run: Run, step: int, module: str) -> torch.Tensor:
    factors = run.factors(step, module)
    return factors.scaling * factors.B.double() @ factors.A.double()


def outside(move: torch.Tensor, side: str, P: torch.Tensor) -> float:
    """Share of a step that the projection on P does not hold."""
    P = P.double()
    inside = move @ P @ P.T if side == "row" else P @ P.T @ move
    return float((move - inside).norm() / move.norm())


def test_each_step_moves_in_the_projection_that_was_recorded_for_it(trained):
    run, _ = trained
    assert projection_steps(run.path) == [1, 4, 7]
    for step in range(1, 9):
        drawn = 1 + 3 * ((step - 1) // 3)
        frames = read_projections(run.path, drawn)
        assert {module for module, _ in frames} == set(run.modules["module"])
        for (module, side), P in frames.items():
            m, n = run.modules.set_index("module").loc[module, ["m", "n"]]
            assert side == ("row" if m >= n else "column")
            move = change(run, step, module) - change(run, step - 1, module)
            assert outside(move, side, P) < 1e-3
            other = read_projections(run.path, 4 if drawn != 4 else 7)[module, side]
            assert outside(move, side, other) > 0.1


def test_projections_are_the_leading_singular_directions_of_the_gradient(trained):
    run, gradients = trained
    for step in projection_steps(run.path):
        for (module, side), P in read_projections(run.path, step).items():
            U, _, Vh = torch.linalg.svd(gradients.of_step[step][module].double())
            leading = Vh[:4].T if side == "row" else U[:, :4]
            overlap = torch.linalg.svdvals(P.double().T @ leading)
            torch.testing.assert_close(overlap, torch.ones(4).double(), atol=1e-4, rtol=0)


def test_a_resumed_run_goes_on_in_the_same_projections(config, trained, tmp_path):
    whole, _ = trained
    _, trainer = build(config, tmp_path / "run")
    trainer.add_callback(StopAfter(5))
    trainer.train()
    (recorder,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, SubspaceRecorder))
    recorder.interrupt()
    description = (tmp_path / "run/run.json").read_text()
    (tmp_path / "run/run.json").write_text(description.replace('"finished"', '"interrupted"'))
    shutil.copy(
        whole.path / "projections/step-000001.safetensors",
        tmp_path / "run/projections/step-000007.safetensors",  # of a future that is forgotten
    )
    train(config, tmp_path / "run", resume=True)
    resumed = Run(tmp_path / "run")
    assert projection_steps(resumed.path) == [1, 4, 7]
    for key, P in read_projections(whole.path, 7).items():
        torch.testing.assert_close(read_projections(resumed.path, 7)[key], P)
    for module in whole.modules["module"]:
        torch.testing.assert_close(change(resumed, 8, module), change(whole, 8, module))


def test_drift_and_motion_are_the_angles_between_refreshes(trained):
    run, _ = trained
    drift, motion = frame_drift.compute(run), subspace_motion.compute(run)
    assert "distance" not in str(frame_drift.summarize(drift))
    assert sorted(drift["step"].unique()) == sorted(motion["step"].unique()) == [4, 7]
    for step, since, earlier in ((4, "previous", 1), (7, "previous", 4), (7, "start", 1)):
        now, then = (read_projections(run.path, s) for s in (step, earlier))
        rows = drift[(drift["step"] == step) & (drift["since"] == since)]
        assert len(rows) == len(now)
        for row in rows.itertuples():
            key = (row.module, row.side)
            truth = scipy.linalg.subspace_angles(*(f[key].double().numpy() for f in (now, then)))
            np.testing.assert_allclose(row.angles, truth[::-1], atol=1e-6)
    for row in motion.itertuples():
        earlier = {4: 1, 7: 4}[row.step]
        P, Q = (read_projections(run.path, s)[row.module, row.side] for s in (row.step, earlier))
        assert row.phi == pytest.approx(float((P.T @ Q).square().sum() / 4), abs=1e-5)
        assert (row.source, row.interval) == ("projection", 3)
        assert row.null_phi == 4 / len(P)


def test_projections_that_were_drawn_once_have_no_drift(trained, tmp_path):
    run, _ = trained
    shutil.copytree(run.path, tmp_path / "run")
    _, *later = sorted((tmp_path / "run" / "projections").iterdir())
    for file in later:
        file.unlink()
    for analysis in (frame_drift, subspace_motion):
        with pytest.raises(UserError, match=r"drew its projections once.*`galore_refresh`"):
            analysis.compute(Run(tmp_path / "run"))
        with pytest.raises(UserError, match="refreshes after the first are at the steps"):
            analysis.compute(run, steps=[projection_steps(run.path)[0]])


def test_effective_ranks_are_those_of_the_whole_change(trained):
    run, _ = trained
    table = effective_rank.compute(run, steps=[8], measures=["stable"])
    for row in table[table["matrix"] == "update"].itertuples():
        sigma = torch.linalg.svdvals(change(run, 8, row.module))
        assert row.value == pytest.approx(float(sigma.square().sum() / sigma[0] ** 2), rel=1e-6)


def test_galore_without_its_package_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install \"subspace_lab\[galore\]\""):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"galore_refresh": 0}, "`galore_refresh` must be at least 1"),
        ({"optimizer": "sgd"}, "AdamW of its own"),
        ({"rank_mask": True}, "has no adapter"),
        ({"base_dtype": "bf16"}, "in fp32"),
    ],
)
def test_settings_that_do_not_go_with_galore_are_refused(config, fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **fields)
