"""The right implementation agrees with every prediction, and each wrong one is caught by name."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.mask_theory import compute, disagreements, plot
from analyses.predictions import masks as mask_predictions
from analyses.predictions.group import groups_of
from analyses.predictions.rows import Prediction
from subspace_lab.adapters.mask import MaskLaw, RankMask
from subspace_lab.recording.run import Run
from subspace_lab.recording.writer import RunWriter
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from tests.analyses import wrong_masks
from tests.analyses.wrong_masks import train

BERNOULLI = MaskLaw(0.7, seed=3)
EXACT = MaskLaw(0.75, sampling="exact-k", seed=3)


def caught(table: pd.DataFrame) -> set[str]:
    return set(table.loc[~table["agrees"].fillna(True), "prediction"])


def written(folder, law: MaskLaw, *, steps=60, modules=6, rank=8, draw=None) -> Run:
    """Write a run that has masks only; `draw` (step, name) gives them, None the law itself."""
    names = [f"model.layers.{layer}.q_proj" for layer in range(modules)]
    table = pd.DataFrame(
        [{"module": name, "layer": i, "projection": "q_proj"} for i, name in enumerate(names)]
    ).assign(m=16, n=16, r=rank, scaling=2.0)
    writer = RunWriter(folder, {"mask": asdict(law)}, table)
    draw = draw or (lambda step, name: law.step_mask(step, name, rank))
    for step in range(1, steps + 1):
        writer.add_masks(step, {rank: np.stack([draw(step, name) for name in names])})
    writer.close()
    return Run(folder)


RIGHT = {
    "step": lambda seed: {"mask": RankMask(0.5, seed=seed)},
    "step, keep 0.7": lambda seed: {"mask": RankMask(0.7, seed=seed)},
    "step, not rescaled, SGD": lambda seed: {
        "mask": RankMask(0.7, rescale=False, seed=seed),
        "optimizer": "sgd",
    },
    "exact-k": lambda seed: {"mask": RankMask(0.5, sampling="exact-k", seed=seed)},
    "two micro-batches": lambda seed: {"mask": RankMask(0.5, seed=seed), "accumulation": 2},
    "sample": lambda seed: {"mask": RankMask(0.7, granularity="sample", seed=seed)},
    "token": lambda seed: {"mask": RankMask(0.5, granularity="token", seed=seed)},
    "lora": lambda seed: {"mask": None},
    "lora, SGD": lambda seed: {"mask": None, "optimizer": "sgd"},
}
TESTED = {"step": 34, "exact-k": 30, "sample": 8, "token": 7, "lora": 8}


@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_implementation_agrees(kind, tmp_path):
    for seed in (0, 1):
        table = compute(train(tmp_path / str(seed), seed=seed, **RIGHT[kind](seed)))
        assert not caught(table), disagreements(table)
        assert table["agrees"].notna().sum() >= TESTED.get(kind, 8)
        assert not table.duplicated(["run", "prediction", "where"]).any()


def law(keep_prob, granularity="step"):
    return MaskLaw(keep_prob, granularity=granularity, seed=5)


WRONG = {  # the mask, what it claims if not its own law, and the rows that must catch it
    "keep and prune swapped in the layers": (
        wrong_masks.Swapped(0.7, seed=5),
        None,
        {"gates are the recorded masks", "columns of B that step 1 moves"},
    ),
    "keep and prune swapped in the law": (
        RankMask(0.3, seed=5),
        law(0.7),
        {
            "kept directions, mean",
            "kept directions, law",
            "masked norm² over expected",
            "regulariser over norm², last third",
        },
    ),
    "not rescaled": (wrong_masks.NotRescaled(0.7, seed=5), None, {"rescale of kept gates"}),
    "per sample, masks recorded": (
        wrong_masks.PerSample(0.5, seed=5),
        None,
        {"gates constant over rows", "columns of B that step 1 moves"},
    ),
    "per sample, no masks recorded": (
        RankMask(0.5, granularity="sample", seed=5),
        law(0.5),
        {"gates constant over rows"},
    ),
    "per token": (
        wrong_masks.PerToken(0.5, seed=5),
        None,
        {"gates constant over tokens", "columns of B that step 1 moves"},
    ),
    "per token sold as per sample": (
        RankMask(0.5, granularity="token", seed=5),
        law(0.5, "sample"),
        {"gates constant over tokens"},
    ),
    "per step sold as per token": (
        RankMask(0.5, seed=5),
        law(0.5, "token"),
        {"overlap of two tokens, mean", "overlap of two rows, mean"},
    ),
    "one mask for all modules": (
        wrong_masks.OneForAllModules(0.5, seed=5),
        None,
        {"overlap of two modules, mean", "masks are the law's function"},
    ),
    "successive steps correlated": (
        wrong_masks.Sticky(0.5, seed=5),
        None,
        {"overlap of next masks, mean", "Jaccard of next masks", "masks are the law's function"},
    ),
    "a mask per micro-batch": (
        wrong_masks.PerMicroBatch(0.5, seed=5),
        None,
        {"gates constant over micro-batches", "columns of B that step 1 moves"},
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_implementation_is_caught_by_name(kind, tmp_path):
    mask, claim, expected = WRONG[kind]
    table = compute(train(tmp_path / "run", mask, claim=claim, accumulation=2))
    assert expected <= caught(table)
    sentences = disagreements(table)
    assert len(sentences) == (~table["agrees"].fillna(True)).sum()
    assert all(any(name in text for text in sentences) for name in expected)


@pytest.mark.parametrize("claim", [BERNOULLI, EXACT], ids=["bernoulli", "exact-k"])
def test_tolerances_are_four_standard_errors_of_the_law(claim, tmp_path):
    """Over seeds, deviations in tolerances have standard deviation 1/4: neither loose nor tight."""
    tables = []
    for seed in range(40):
        run = written(tmp_path / str(seed), MaskLaw(**asdict(claim) | {"seed": seed}), steps=24)
        tables.append(compute(run))
    table = pd.concat(tables, ignore_index=True)
    assert not caught(table)
    means = table[table["basis"].str.startswith("4 standard errors, from the predicted")]
    deviations = (means["measured"] - means["predicted"]) / means["tolerance"]
    spread = deviations[means["tolerance"] > 0].groupby(means["prediction"]).std()
    assert len(spread) >= 4
    assert spread.between(0.14, 0.36).all(), spread  # 1/4, to within 4 of its standard errors


@pytest.mark.parametrize(
    ("claim", "actual", "prediction"),
    [
        (MaskLaw(0.5), MaskLaw(0.5, sampling="exact-k"), "kept directions, law"),
        (MaskLaw(0.5, sampling="exact-k"), MaskLaw(0.5), "kept directions, law"),
        (MaskLaw(0.5), MaskLaw(0.55), "kept directions, mean"),
    ],
)
def test_masks_of_another_law_are_caught(claim, actual, prediction, tmp_path):
    run = written(
        tmp_path / "run", claim, steps=200, draw=lambda step, name: actual.step_mask(step, name, 8)
    )
    assert prediction in caught(compute(run))


def test_a_direction_that_is_never_kept_and_masks_that_return_are_caught(tmp_path):
    claim = MaskLaw(0.5)
    lame = np.arange(8) != 3
    run = written(
        tmp_path / "lame", claim, draw=lambda step, name: claim.step_mask(step, name, 8) & lame
    )
    assert {"keep frequency by direction", "steps until all were kept"} <= caught(compute(run))
    run = written(
        tmp_path / "period", claim, draw=lambda step, name: claim.step_mask(step % 7, name, 8)
    )
    assert {"equal masks, pairs"} <= caught(compute(run))


@pytest.mark.parametrize("lag", [1, 2])
def test_variance_of_chained_overlaps_by_enumeration(lag, tmp_path):
    """One direction over 5 steps: 2^5 histories, overlaps of all pairs (t, t + lag)."""
    run = written(tmp_path / "run", MaskLaw(0.3), rank=1, modules=1, steps=5)
    history = all_masks(5).double()
    weights = mask_probabilities(all_masks(5), keep_prob=0.3)
    mean_overlap = (history[:, lag:] * history[:, :-lag]).mean(1)
    exact = float(weights @ (mean_overlap - weights @ mean_overlap) ** 2)
    pairs = 5 - lag
    mean, variance = mask_predictions._chained_moments(groups_of(run)[0], pairs=pairs, lag=lag)
    assert mean == pytest.approx(0.3**2)
    assert variance / pairs == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("sampling", ["bernoulli", "exact-k"])
def test_regulariser_over_training_is_that_of_all_masks(sampling, tmp_path):
    run = train(tmp_path / "run", RankMask(0.5, sampling=sampling), steps=10)
    table = compute(run).set_index("prediction")
    possible = all_masks(8)
    if sampling == "exact-k":
        possible = possible[possible.sum(1) == 4]
    thirds = {"first": (1, 2, 3), "middle": (4, 5, 6), "last": (7, 8, 9)}
    for part, states in thirds.items():
        found, expected = [], []
        for step in states:
            kept = torch.from_numpy(run.masks_of_rank(8)[1][step])  # of step + 1
            (batch,) = run.cores(steps=[step], motions=False)
            B, A = batch.core.column.R[0], batch.core.row.R[0].mT
            mean = (0.5 * B @ A).square().sum((-2, -1))
            found.append(((B * kept[:, None]) @ A).square().sum((-2, -1)) / mean - 1)
            masked = (B * possible[:, None, None]) @ A
            expected.append(masked.square().sum((-2, -1)).mean(0) / mean - 1)
        row = table.loc[f"regulariser over norm², {part} third"]
        assert row["measured"] == pytest.approx(float(torch.cat(found).mean()), rel=1e-9)
        assert row["predicted"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-9)


def test_disjoint_pairs_share_no_mask():
    for lag in (1, 2, 3):
        for steps in range(9):
            first, second = mask_predictions.disjoint_pairs(np.arange(steps), lag=lag)
            assert (second - first == lag).all()
            used = [*first.tolist(), *second.tolist()]
            assert len(set(used)) == len(used)


def test_pooling_keeps_all_draws_and_says_nothing_of_few():
    prediction, pmf = Prediction("law", "T1", "wrong"), np.array([0.01, 0.49, 0.49, 0.01])
    draws = np.repeat([1, 2], 50)
    (row,) = prediction.law(draws, pmf=pmf)
    assert (row.predicted, row.measured) == (1, 0)  # cells {0, 1} and {2, 3}, 50 expected in each
    assert not list(prediction.law(draws[:4], pmf=pmf))


def test_an_adapter_of_another_tool_is_tested_on_what_it_has(adapter):
    table = compute(Run(adapter))
    assert set(table["statement"]) == {"T5", "T7"}
    assert not caught(table)


def test_a_frame_that_is_not_random_is_not_held_against_the_random_null(run):
    whole = groups_of(run)[0]
    assert whole.starts_at_random
    run = Run(run.path)
    run.description["config"] = {"method": "full"}
    assert groups_of(run)[0].starts_at_zero and not groups_of(run)[0].starts_at_random
    assert "T3" not in set(compute(run)["statement"])


def test_a_masked_run_is_compared_with_the_lora_run_of_its_configuration(tmp_path):
    runs = [train(tmp_path / "masked", RankMask(0.5)), train(tmp_path / "plain", None)]
    name = "B's displacement over LoRA's"
    row = compute(runs[0], others=runs).set_index("prediction").loc[name]
    B = [run.factors(16, module).B for run in runs for module in run.modules["module"]]
    half = len(B) // 2
    masked, plain = (torch.stack([b.norm() for b in part]).norm() for part in (B[:half], B[half:]))
    assert row["measured"] == pytest.approx(float(masked / plain), rel=1e-5)
    assert row["predicted"] == pytest.approx(0.5**0.5)
    assert name not in set(compute(runs[1], others=runs)["prediction"])


@pytest.fixture
def ensemble_table(run, tmp_path):
    """Write a table of `ensemble_vs_single` for a copy of the run's record, minimum at c = 1.25."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in run.path.iterdir():
        (folder / path.name).symlink_to(path)
    rows = [
        {"predictor": predictor, "scale": scale, "loss": 1 + (scale - 1.25) ** 2}
        for predictor, scale in [("base", 0.0), ("scaled", 0.5), ("full", 1.0), ("scaled", 1.5)]
    ]
    rows += [{"predictor": "single", "scale": 1.0, "loss": loss} for loss in (1.2, 1.6)]
    rows += [
        {"predictor": "geometric", "scale": 1.0, "loss": 1.1, "jensen_gap": 0.3},
        {"predictor": "arithmetic", "scale": 1.0, "loss": 1.3},
    ]
    table = pd.DataFrame(rows).assign(step=6, predicted_scale=1.2, examples=9)
    (folder / "analyses").mkdir(exist_ok=True)
    table.to_parquet(folder / "analyses" / "ensemble_vs_single.parquet")
    return folder, table


def test_ensemble_identities_come_from_its_table(ensemble_table):
    folder, table = ensemble_table
    found = compute(Run(folder)).set_index("prediction")
    assert found.loc["single = geometric + Jensen gap", "agrees"]
    assert found.loc["best inference scale", "measured"] == pytest.approx(1.25)
    table.loc[table["predictor"] == "geometric", "jensen_gap"] = 0.2
    table.to_parquet(folder / "analyses" / "ensemble_vs_single.parquet")
    assert "single = geometric + Jensen gap" in caught(compute(Run(folder)))


def test_command_writes_table_figure_and_sentences(command, tmp_path):
    run = train(tmp_path / "wrong", wrong_masks.NotRescaled(0.7), steps=3)
    found = command("mask_theory", "--run", run.path, "--out", tmp_path / "out")
    assert found.code == 0, found.err
    assert "rescale of kept gates (T7) predicts 1.429, measured 1" in found.out
    summary = json.loads((tmp_path / "out" / "mask_theory.json").read_text())["summary"]
    assert "rescale of kept gates" in summary["disagreement 1"]
    table = pd.read_parquet(tmp_path / "out" / "mask_theory.parquet")
    assert set(table) >= {"run", "prediction", "where", "predicted", "measured", "tolerance"}
    assert (tmp_path / "out" / "mask_theory.png").stat().st_size > 10_000


def test_figure_shows_every_prediction_once(run):
    table = compute(run)
    axes = plot(table).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert len(labels) == table["prediction"].nunique()
    drawn = sum(len(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "None")
    assert drawn == len(table)
