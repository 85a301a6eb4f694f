"""Rank curves of a trained pocket model: the ends, both gauges, and the statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import rank_curve
from analyses.rank_curve.figure import figure_table
from analyses.rank_curve.kept_directions import KeptDirections, ProbeScores
from analyses.rank_curve.probes import ENDS, Probe, all_but_one, curves
from analyses.rank_curve.tables import curve_rows, left_out_rows, with_evenness
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.evaluation.likelihood import response_loss
from subspace_lab.evaluation.trained_model import evaluation_examples, load_trained
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import mean_interval, ratio_interval
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.analyses.documented import documented

SHORT = {"steps": 6, "train_size": 48, "eval_size": 10, "learning_rate": 1e-2, "rank": 4}
FEW = {"points": 3, "draws": 2, "left_out": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "step"
    train(TrainConfig(method="droplora", cores="light", **SHORT), folder)
    return Run(folder)


@pytest.fixture(scope="module")
def table(run):
    return rank_curve.compute(run, **FEW)


def update(module) -> torch.Tensor:
    return (module.B.double() @ module.A.double()).detach()


def test_the_ends_are_the_base_and_the_whole_adapter(run, table):
    trained, examples = load_trained(run), evaluation_examples(run)
    full = response_loss(trained.model, trained.tokenizer, examples).per_token
    with trained.model.disable_adapter():
        base = response_loss(trained.model, trained.tokenizer, examples).per_token
    along = table[table["curve"] != "left_out"]
    for kept, loss in ((0, base), (4, full)):
        assert along.loc[along["kept"] == kept, "loss"].to_numpy() == pytest.approx(loss, rel=1e-5)
    assert base - full > 0.05


def test_a_point_is_a_dense_model_with_the_truncated_update(run, table):
    """Kept singular directions: W0 gets the truncated SVD of B A, taken densely."""
    trained, examples = load_trained(run), evaluation_examples(run)
    for module in lora_modules(trained.model):
        U, S, Vh = torch.linalg.svd(update(module), full_matrices=False)
        with torch.no_grad():
            truncated = module.scaling * (U[:, :2] * S[:2]) @ Vh[:2]
            module.layer.get_base_layer().weight += truncated.float()
    with trained.model.disable_adapter():
        dense = response_loss(trained.model, trained.tokenizer, examples).per_token
    row = table[(table["curve"] == "svd") & (table["kept"] == 2)].iloc[0]
    assert row["loss"] == pytest.approx(dense, rel=1e-5)
    assert row["loss"] != pytest.approx(table["loss"].iloc[-1], rel=1e-4)


def test_prefix_random_and_left_out_are_columns_of_b_set_to_zero(run, table):
    ranks = dict(zip(run.modules["module"], run.modules["r"], strict=True))
    for probe in (Probe("prefix", 2), Probe("random", 2, 1), all_but_one(ranks, modules=2)[-3]):
        trained, examples = load_trained(run), evaluation_examples(run)
        gates = probe.gates(ranks, seed=0)
        kept = {name: int(gate.sum()) for name, gate in gates.items()}
        if probe.curve == "left_out":
            assert kept == ranks | {probe.module: 3}
        else:
            assert set(kept.values()) == {2}
        for module in lora_modules(trained.model):
            with torch.no_grad():
                module.B.mul_(gates[module.name])
        by_hand = response_loss(trained.model, trained.tokenizer, examples).per_token
        named = ["curve", "kept", "draw", "module", "direction"]
        row = table[(table[named] == list(probe)).all(axis=1)].iloc[0]
        assert row["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_random_orders_are_nested_uniform_and_the_modules_own():
    ranks = {"a": 4, "b": 4, "c": 2}
    counts = np.zeros(4)
    for draw in range(2000):
        one, two = (Probe("random", k, draw).gates(ranks, seed=3) for k in (1, 2))
        assert all((two[name] >= one[name]).all() for name in ranks)
        assert (one["c"].sum(), two["c"].sum()) == (0, 1)  # half the rank, the same share
        counts += one["a"].numpy()
    assert counts.sum() == 2000
    assert ((counts - 500) ** 2 / 500).sum() < 16.3  # chi-squared, 3 degrees: probability 1e-3
    draws = [Probe("random", 2, draw).gates(ranks, seed=3) for draw in range(50)]
    assert any(not torch.equal(gates["a"], gates["b"]) for gates in draws)


@pytest.mark.usefixtures("processor")
def test_the_start_that_pissa_subtracts_stays_and_weights_are_put_back(tmp_path):
    train(TrainConfig(method="pissa", cores="light", **SHORT), tmp_path / "pissa")
    run = Run(tmp_path / "pissa")
    model = load_trained(run).model
    before = {module.name: update(module) for module in lora_modules(model)}
    directions = KeptDirections(model, dict.fromkeys(before, 4))
    with directions.keeping({name: torch.zeros(4) for name in before}, gauge="singular"):
        for module in lora_modules(model):
            start = module.B[:, 4:].double() @ module.A[4:].double()
            assert module.rank == 8 and start.abs().max() > 1e-3
            torch.testing.assert_close(update(module), start.detach(), atol=1e-7, rtol=0)
    for module in lora_modules(model):
        assert torch.equal(update(module), before[module.name])


def test_the_table_of_interchangeable_directions():
    """A loss that depends on the number of kept directions only: prefix = random, evenness 1."""
    ranks = {"a": 4, "b": 4}
    along, single = curves(ranks, points=5, draws=3), all_but_one(ranks, modules=1)
    probes = list(dict.fromkeys([*(probe for curve in along for probe in curve.probes), *single]))
    tokens = np.array([1, 2, 4])

    def made(missing: float) -> np.ndarray:  # nats of each example
        return tokens * (1.0 + missing)

    nats = np.array(
        [made(0.05) if probe.curve == "left_out" else made(4 - probe.kept) for probe in probes]
    )
    exact = np.array([[probe.kept == 4, True, False] for probe in probes])
    scores = ProbeScores(nats, exact, tokens)
    rows = [*curve_rows(along, probes, scores), *left_out_rows(probes, scores)]
    table = with_evenness(pd.DataFrame(rows))
    points = table[table["curve"] != "left_out"]
    assert points["cost"].to_numpy() == pytest.approx(4 - points["kept"])
    assert points["cost_area"].to_numpy() == pytest.approx(2)  # of 4 - 4 x over [0, 1]
    assert (points["cost_high"] - points["cost_low"]).abs().max() < 1e-12  # paired by example
    assert points["accuracy_area"].to_numpy() == pytest.approx(1 / 3 + 1 / 3 * 1 / 8)
    left_out = table[table["curve"] == "left_out"]
    assert left_out["evenness"].to_numpy() == pytest.approx(1)
    assert len(left_out) == 4 and set(left_out["module"]) == {"a"}
    assert sum(probe.curve == ENDS for probe in probes) == 2


def test_the_ratio_interval_covers_and_is_the_t_interval_for_equal_denominators():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        y = rng.integers(1, 6, 40)
        interval = ratio_interval(2.0 * y + rng.normal(0, np.sqrt(y)), y)
        covered.append(interval.low <= 2.0 <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 2000))
    sample = rng.normal(size=(2, 9))
    ratio, mean = ratio_interval(sample, np.full(9, 3)), mean_interval(sample / 3)
    np.testing.assert_allclose([ratio.low, ratio.high], [mean.low, mean.high])


def test_columns_figure_and_command(run, table, command, tmp_path):
    assert set(table.columns) == documented("rank_curve")
    shown = figure_table(table)
    shares = shown[shown["panel"] == "left_out"]
    assert shares["value"].is_monotonic_decreasing and set(shares["even"]) == {0.25}
    assert len(rank_curve.ANALYSIS.plots["rank_curve"](table).axes) == 3
    one = ["--modules", "q_proj", "--points", "2", "--draws", "0", "--left_out", "0"]
    done = command("rank_curve", "--run", run.path, *one, "--out", tmp_path)
    assert done.code == 0, done.err
    written = pd.read_parquet(tmp_path / "rank_curve.parquet")
    last = written[written["step"] == 6]
    ends = table.drop_duplicates("kept").set_index("kept")["loss"]
    full, partly = (last.loc[last["kept"] == kept, "loss"].iloc[0] for kept in (4, 0))
    assert full == pytest.approx(ends[4], rel=1e-6)
    assert partly != pytest.approx(ends[0], rel=1e-4)  # the other modules keep theirs


def test_what_it_refuses(run):
    with pytest.raises(UserError, match="`points` must be at least 2"):
        rank_curve.compute(run, points=1)
    with pytest.raises(UserError, match="`draws` must be at least 0"):
        rank_curve.compute(run, draws=-1)


def test_masked_and_plain_runs_are_written_as_one_table(run, command, tmp_path):
    train(TrainConfig(cores="light", **SHORT), tmp_path / "lora")
    few = [part for name, value in FEW.items() for part in (f"--{name}", str(value))]
    both = ["--run", run.path, "--run", tmp_path / "lora"]
    done = command("rank_curve", *both, *few, "--out", tmp_path / "out", "--format", "png")
    assert done.code == 0, done.err
    written = pd.read_parquet(tmp_path / "out" / "rank_curve.parquet")
    assert written.groupby("run", observed=True)["rescale"].unique().str[0].to_dict() == {
        "lora": "",
        "step": "keep_prob",
    }


def test_seeds_of_a_configuration_are_one_curve(table):
    other = table.assign(run="other", cost=table["cost"] + 0.5, accuracy=table["accuracy"] / 2)
    both = pd.concat([table, other]).assign(configuration="step masks")
    single, points = figure_table(table), figure_table(both)
    assert set(points["run"]) == {"step masks"} and set(points["seeds"]) == {2}
    keys = ["curve", "position"]
    of_one, of_both = (
        rows[(rows["panel"] == "cost") & (rows["draw"] == -1)].set_index(keys).sort_index()
        for rows in (single, points)
    )
    assert of_both["value"].to_numpy() == pytest.approx(of_one["value"] + 0.25)
    half = mean_interval([0.0, 0.5]).high - 0.25
    assert (of_both["high"] - of_both["value"]).to_numpy() == pytest.approx(half)
