"""The right implementation agrees with every prediction, and each wrong one is caught by name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import claims, mask_theory
from analyses.mask_theory import ANALYSIS, chance, join
from analyses.mask_theory.comparison import NotTestableError
from analyses.mask_theory.drawn_masks import disjoint_pairs
from analyses.mask_theory.figure import compared, disagreements, summarize
from analyses.mask_theory.prediction import predictions_of
from analyses.mask_theory.record import groups_of
from subspace_lab import files
from subspace_lab.adapters.mask import RankMask
from subspace_lab.errors import UserError
from subspace_lab.recording.writer import RunWriter
from subspace_lab.runs.run import Run
from subspace_lab.theory.enumeration import all_masks
from subspace_lab.theory.mask_law import Bernoulli, ExactK, MaskLaw
from tests.analyses import wrong_masks
from tests.analyses.wrong_masks import Fault, train


def compute(run: Run, **arguments) -> pd.DataFrame:
    """Give the predictions that the run's record can test."""
    return compared(mask_theory.compute(run, **arguments))


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
    "step": lambda: {"mask": RankMask(0.5)},
    "step, keep 0.7, another seed": lambda: {"mask": RankMask(0.7, seed=1), "seed": 1},
    "not rescaled, SGD": lambda: {"mask": RankMask(0.7, rescale=False), "optimizer": "sgd"},
    "exact-k": lambda: {"mask": RankMask(0.5, sampling="exact-k")},
    "two micro-batches": lambda: {"mask": RankMask(0.5), "accumulation": 2},
    "sample": lambda: {"mask": RankMask(0.7, granularity="sample")},
    "token": lambda: {"mask": RankMask(0.5, granularity="token")},
    "token, few kept": lambda: {"mask": RankMask(0.05, granularity="token")},
    "lora": lambda: {"mask": None},
    "lora, SGD": lambda: {"mask": None, "optimizer": "sgd"},
    "DoRA": lambda: {"mask": RankMask(0.5), "adapter": {"use_dora": True}},
    "PiSSA": lambda: {"mask": RankMask(0.5), "adapter": {"init_lora_weights": "pissa"}},
    "weight decay": lambda: {"mask": RankMask(0.5), "weight_decay": 0.5},
    "SGD with decay": lambda: {
        "mask": RankMask(0.5),
        "optimizer": "sgd",
        "weight_decay": 0.1,
    },
    "resumed": lambda: {"mask": RankMask(0.5), "resume_from": 8},
    "warm-up from 0": lambda: {
        "mask": RankMask(0.5),
        "warmup_steps": 4,
        "lr_scheduler_type": "cosine",
    },
    "other betas, clipped": lambda: {
        "mask": RankMask(0.5),
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "max_grad_norm": 0.01,
    },
    "gradient checkpointing": lambda: {
        "mask": RankMask(0.5),
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "rank above the layers' inputs": lambda: {"mask": RankMask(0.5), "adapter": {"r": 40}},
    "huge scaling": lambda: {"mask": RankMask(0.5), "adapter": {"lora_alpha": 1e30}},
    "tiny scaling": lambda: {"mask": RankMask(0.5), "adapter": {"lora_alpha": 1e-30}},
    "exploding gradient": lambda: {"mask": RankMask(0.5), "adapter": {"lora_alpha": 1e12}},
    "huge learning rate": lambda: {
        "mask": RankMask(0.5),
        "learning_rate": 1e30,
        "max_grad_norm": 0.0,
    },
}
TESTED = {"step": 12, "exact-k": 12, "sample": 5, "token": 6, "lora": 7, "weight decay": 10}


@pytest.mark.filterwarnings("ignore:the adapter's B A is not zero")
@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_implementation_agrees(kind, tmp_path):
    table = compute(train(tmp_path / "run", **RIGHT[kind]()))
    assert not caught(table), disagreements(table)
    of_training = table[table["agrees"].notna() & (table["tests"] == "training")]
    assert len(of_training) >= TESTED.get(kind, 4)
    assert not table.duplicated(["run", "prediction", "where"]).any()
    assert table.loc[table["kind"] == "sampling", ["power", "probability"]].notna().all(axis=None)


def law(keep_prob, granularity="step"):
    return Bernoulli(keep_prob, granularity=granularity, seed=5)


def step(keep_prob=0.5):
    return RankMask(keep_prob, seed=5)


def token(granularity="token"):
    return RankMask(0.5, granularity=granularity, seed=5)


DROPPED = "steps of dropped directions"
KEPT = "kept directions without a gradient"
WRONG = {  # the mask, what it claims if not its own law, what the layers do, rows that must see it
    "keep and prune swapped in the layers": (
        step(0.7),
        None,
        Fault(wrong_masks.swapped, after=0),
        {"gates are the recorded masks", "columns of B that step 1 moves", DROPPED, KEPT},
    ),
    "keep and prune swapped in the law": (
        step(0.3),
        law(0.7),
        None,
        {
            "kept directions, mean",
            "kept directions, law",
            "masked norm² over expected",
            "regularizer over norm², last third",
        },
    ),
    "not rescaled": (
        step(0.7),
        None,
        Fault(wrong_masks.rescaled(1), after=0),
        {"rescale of kept gates"},
    ),
    "per sample, masks recorded": (
        step(),
        None,
        Fault(wrong_masks.drawn(wrong_masks.per_sample), after=0),
        {"gates constant over examples", "columns of B that step 1 moves", DROPPED},
    ),
    "per sample, no masks recorded": (
        token("sample"),
        law(0.5),
        None,
        {"gates constant over examples"},
    ),
    "per token": (
        step(),
        None,
        Fault(wrong_masks.drawn(wrong_masks.per_token), after=0),
        {"gates constant over tokens", "columns of B that step 1 moves", DROPPED},
    ),
    "per token sold as per sample": (
        token(),
        law(0.5, "sample"),
        None,
        {"gates constant over tokens"},
    ),
    "per step sold as per token": (
        step(),
        law(0.5, "token"),
        None,
        {"overlap of two tokens, mean", "overlap of two examples, mean"},
    ),
    "per step in the layers, sold as per token": (
        token(),
        None,
        Fault(wrong_masks.others, after=0),
        {"overlap of two tokens, mean", "directions that step 1 left"},
    ),
    "one mask for all modules": (
        wrong_masks.OneForAllModules(0.5, seed=5),
        None,
        None,
        {"overlap of two modules, mean", "masks are the law's function"},
    ),
    "successive steps correlated": (
        wrong_masks.Sticky(0.5, seed=5),
        None,
        None,
        {"Jaccard of next masks", "masks are the law's function"},
    ),
    "a mask per micro-batch, or per process": (
        step(),
        None,
        Fault(wrong_masks.drawn(wrong_masks.per_pass), after=0),
        {"gates constant over micro-batches", "columns of B that step 1 moves", DROPPED},
    ),
    "off after step 10": (step(), None, Fault(wrong_masks.off, after=10), {DROPPED}),
    "off in the last two steps": (step(), None, Fault(wrong_masks.off, after=14), {DROPPED}),
    "other masks after step 12": (step(), None, Fault(wrong_masks.others, after=12), {DROPPED}),
    "swapped after step 12": (step(), None, Fault(wrong_masks.swapped, after=12), {DROPPED, KEPT}),
    "frozen after step 12": (step(), None, Fault(wrong_masks.frozen, after=12), {DROPPED, KEPT}),
    "per sample after step 12": (
        step(),
        None,
        Fault(wrong_masks.drawn(wrong_masks.per_sample), after=12),
        {DROPPED},
    ),
    "no rescale after step 2": (
        step(),
        None,
        Fault(wrong_masks.rescaled(1), after=2),
        {"rescale of kept gates"},
    ),
    "no rescale in one module": (
        step(),
        None,
        Fault(wrong_masks.not_rescaled_in_one_module, after=0),
        {"rescale of kept gates"},
    ),
    "rescale 10 times too large after step 2": (
        step(),
        None,
        Fault(wrong_masks.rescaled(20), after=2),
        {"rescale of kept gates"},
    ),
    "rescale 1.003 times too large": (
        step(),
        None,
        Fault(wrong_masks.rescaled(2 * 1.003), after=0),
        {"rescale of kept gates"},
    ),
    "token masks off after step 2": (
        token(),
        None,
        Fault(wrong_masks.off, after=2),
        {"gates kept, count", "overlap of two tokens, mean", "rescale of kept gates"},
    ),
    "sample masks off after step 2": (
        token("sample"),
        None,
        Fault(wrong_masks.off, after=2),
        {"gates kept, count", "overlap of two examples, mean", "rescale of kept gates"},
    ),
    "masked, and says that it is not": (
        None,
        None,
        Fault(wrong_masks.frozen, after=2),
        {"gates without a mask are 1", "rescale of kept gates"},
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_implementation_is_caught_by_name(kind, tmp_path):
    mask, claim, fault, expected = WRONG[kind]
    accumulation = 2 if "micro-batch" in kind else 1
    run = train(tmp_path / "run", mask, claim=claim, fault=fault, accumulation=accumulation)
    table = compute(run)
    assert expected <= caught(table)
    sentences = disagreements(table)
    assert len(sentences) == (~table["agrees"].fillna(True)).sum()
    assert all(any(name in text for text in sentences) for name in expected)


def test_a_rescale_that_is_wrong_by_less_than_the_power_is_not_caught(tmp_path):
    fault = Fault(wrong_masks.rescaled(2 * 1.0005), after=0)
    row = compute(train(tmp_path / "run", step(), fault=fault)).set_index("prediction")
    assert row.loc["rescale of kept gates", "agrees"]
    assert row.loc["rescale of kept gates", "power"] > 2 * 0.0005


def test_cores_of_another_run_are_caught(tmp_path):
    masked, plain = train(tmp_path / "masked", step()), train(tmp_path / "plain", None)
    shutil.rmtree(masked.path / "cores")
    shutil.copytree(plain.path / "cores", masked.path / "cores")
    table = compute(Run(masked.path))
    assert {DROPPED, "columns of B that step 1 moves"} <= caught(table)


def test_missing_masks_are_named(tmp_path):
    run = train(tmp_path / "run", step(), steps=4)
    path = next((run.path / "masks").glob("*.safetensors"))
    with files.open_tensors(path) as tensors:
        kept = {name: tensors.get_tensor(name)[[0, 1, 3]] for name in tensors.keys()}  # noqa: SIM118
    files.write_tensors(path, kept)
    with pytest.raises(UserError, match="lacks the masks of the steps 3: restore"):
        compute(Run(run.path))


def test_a_run_that_diverged_says_so(tmp_path):
    run = train(tmp_path / "run", step(), steps=6)
    path = next((run.path / "cores").glob("*.safetensors"))
    with files.open_tensors(path) as tensors:
        arrays = {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
    for array in arrays.values():
        if array.is_floating_point():
            array[4:] = float("nan")
    files.write_tensors(path, arrays)
    table = compute(Run(run.path))
    assert caught(table) == {"weights are finite"}
    assert table.set_index("prediction").loc["weights are finite", "measured"] == 3
    assert table["measured"].notna().all()


def test_tests_of_training_are_counted_apart_and_shared_seeds_once(tmp_path):
    runs = [
        train(tmp_path / "step", RankMask(0.5, seed=5), steps=6),
        train(tmp_path / "eq2", RankMask(0.5, seed=5, rescale=False), steps=6),
        train(tmp_path / "other", RankMask(0.5, seed=6), seed=1, steps=6),
    ]
    table = join(compute(run) for run in runs)
    repeated = table[table["repeats"]]
    assert set(repeated["run"]) == {"eq2"}
    assert set(repeated["tests"]) == {"masks drawn", "initialization"}
    assert "kept directions, mean" in set(repeated["prediction"])
    summary = summarize(table)
    of_training = table[(table["run"] == "eq2") & (table["tests"] == "training")]
    tested = int(of_training["agrees"].notna().sum())
    assert summary["eq2"].startswith(f"{tested} of {tested} tests of training agree")
    indicative = table[(table["run"] == "eq2") & (table["kind"] == "indicative")]
    far = (indicative["measured"] - indicative["predicted"]).abs() > indicative["tolerance"]
    assert f"{len(indicative)} indicative, {far.sum()} of them off their scale" in summary["eq2"]
    assert f"{len(repeated)} with the evidence of another run" in summary["eq2"]


@pytest.mark.parametrize(
    ("claim", "actual", "prediction"),
    [
        (Bernoulli(0.5), ExactK(0.5), "kept directions, law"),
        (ExactK(0.5), Bernoulli(0.5), "kept directions, law"),
        (Bernoulli(0.5), Bernoulli(0.55), "kept directions, mean"),
    ],
)
def test_masks_of_another_law_are_caught(claim, actual, prediction, tmp_path):
    run = written(
        tmp_path / "run", claim, steps=200, draw=lambda step, name: actual.step_mask(step, name, 8)
    )
    assert prediction in caught(compute(run))


def test_a_direction_that_is_never_kept_and_masks_that_return_are_caught(tmp_path):
    claim = Bernoulli(0.5)
    lame = np.arange(8) != 3
    run = written(
        tmp_path / "lame", claim, draw=lambda step, name: claim.step_mask(step, name, 8) & lame
    )
    assert {"keep frequency by direction", "steps until all were kept"} <= caught(compute(run))
    run = written(
        tmp_path / "period", claim, draw=lambda step, name: claim.step_mask(step % 7, name, 8)
    )
    assert {"masks are the law's function", "keep frequency by direction"} <= caught(compute(run))


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
            (batch,) = run.cores(steps=[step], displacements=False)
            B, A = batch.core.column.R[0], batch.core.row.R[0].mT
            mean = (0.5 * B @ A).square().sum((-2, -1))
            found.append(((B * kept[:, None]) @ A).square().sum((-2, -1)) / mean - 1)
            masked = (B * possible[:, None, None]) @ A
            expected.append(masked.square().sum((-2, -1)).mean(0) / mean - 1)
        row = table.loc[f"regularizer over norm², {part} third"]
        assert row["measured"] == pytest.approx(float(torch.cat(found).mean()), rel=1e-9)
        assert row["predicted"] == pytest.approx(float(torch.cat(expected).mean()), rel=1e-9)


def test_disjoint_pairs_share_no_mask():
    for lag in (1, 2, 3):
        for steps in range(9):
            first, second = disjoint_pairs(np.arange(steps), lag=lag)
            assert (second - first == lag).all()
            used = [*first.tolist(), *second.tolist()]
            assert len(set(used)) == len(used)


def test_pooling_keeps_all_draws_and_says_nothing_of_few():
    pmf = np.array([0.01, 0.49, 0.49, 0.01])
    draws = np.repeat([1, 2], 50)
    row = chance.distribution_of_counts(draws, pmf=pmf)
    assert (row.predicted, row.measured) == (1, 0)  # cells {0, 1} and {2, 3}, 50 expected in each
    with pytest.raises(NotTestableError, match="4 draws are too few"):
        chance.distribution_of_counts(draws[:4], pmf=pmf)


def test_an_adapter_of_another_tool_is_tested_on_what_it_has(adapter):
    table = compute(Run(adapter))
    assert set(table["statement"]) == {"T7"}
    assert not caught(table)


def test_a_frame_that_is_not_random_is_not_held_against_the_random_null(run):
    whole = groups_of(run)[0]
    assert whole.starts_at_random
    run = Run(run.path)
    run.description["config"] = {"method": "full"}
    assert groups_of(run)[0].starts_at_zero and not groups_of(run)[0].starts_at_random
    assert "T3" not in set(compute(run)["statement"])


def test_every_prediction_has_a_name_of_its_own_and_a_theorem_of_the_list():
    topics = (*mask_theory.TOPICS, mask_theory.inference)
    predictions = list(predictions_of(*topics))
    assert len({prediction.name for prediction in predictions}) == len(predictions) > 60
    text = (Path(__file__).parents[2] / "docs" / "theory.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (T\d+) \|", text.partition("## Conventions")[0], re.MULTILINE))
    assert {prediction.theorem for prediction in predictions} - {""} <= listed


def test_what_a_record_cannot_test_says_why(tmp_path):
    runs = [train(tmp_path / name, mask, steps=4) for name, mask in TESTABLE_BY.items()]
    table = mask_theory.compute(runs[0]).set_index("prediction")
    reasons = table.loc[table["kind"] == "not testable", "basis"]
    assert reasons["overlap of two tokens, mean"] == "the run has no masks per token"
    assert reasons["arithmetic ensemble <= single"] == "analyses.ensemble_vs_single was not run"
    assert reasons["A's displacement over LoRA's"].startswith("no LoRA run")
    for name in ("soft-thresholded spectrum", "best inference scale", "masks equalize directions"):
        assert "squared loss" in reasons[name]  # all runs here minimize cross-entropy
    assert table.loc[reasons.index, ["measured", "agrees", "power"]].isna().all(axis=None)
    for run in runs[1:]:
        reasons = mask_theory.compute(run).set_index("prediction")["basis"]
        assert reasons["kept directions, mean"] == "no step masks were recorded"
    names = {tuple(mask_theory.compute(run)["prediction"]) for run in runs}
    assert len(names) == 1  # every run lists every prediction


TESTABLE_BY = {"step": RankMask(0.5), "token": RankMask(0.5, granularity="token"), "lora": None}


def test_a_masked_run_is_compared_with_the_lora_run_of_its_configuration(tmp_path):
    runs = [train(tmp_path / "masked", RankMask(0.5)), train(tmp_path / "plain", None)]
    name = "B's displacement over LoRA's"
    row = compute(runs[0], others=runs).set_index("prediction").loc[name]
    B = [run.factors(16, module).B for run in runs for module in run.modules["module"]]
    half = len(B) // 2
    masked, plain = (torch.stack([b.norm() for b in part]).norm() for part in (B[:half], B[half:]))
    assert row["measured"] == pytest.approx(float(masked / plain), rel=1e-5)
    squares = (runs[0].metrics["learning_rate"] ** 2).sum()
    walk = sum(b.numel() for b in B[half:]) * squares / float(plain) ** 2
    assert row["predicted"] == pytest.approx((0.5 + 0.5 * walk) ** 0.5, rel=1e-5)
    assert row["predicted"] > 0.5**0.5 + 0.02  # LoRA's displacement is in part a random walk
    assert name not in set(compute(runs[1], others=runs)["prediction"])


@pytest.fixture
def ensemble_table(run, tmp_path):
    """Write a table of `ensemble_vs_single` for a copy of the run's record."""
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
    table.loc[table["predictor"] == "geometric", "jensen_gap"] = 0.2
    table.to_parquet(folder / "analyses" / "ensemble_vs_single.parquet")
    assert "single = geometric + Jensen gap" in caught(compute(Run(folder)))


def test_command_writes_table_figure_and_sentences(command, tmp_path):
    not_rescaled = Fault(wrong_masks.rescaled(1), after=0)
    run = train(tmp_path / "wrong", RankMask(0.7), fault=not_rescaled, steps=3)
    found = command("mask_theory", "--run", run.path, "--out", tmp_path / "out")
    assert found.code == 0, found.err
    assert "rescale of kept gates (T7) predicts 1.429, measured 1" in found.out
    summary = json.loads((tmp_path / "out" / "mask_theory.json").read_text())["summary"]
    assert "rescale of kept gates" in summary["disagreement 1"]
    table = pd.read_parquet(tmp_path / "out" / "mask_theory.parquet")
    assert set(table) >= {"run", "prediction", "where", "predicted", "measured", "tolerance"}
    assert (tmp_path / "out" / "mask_theory.png").stat().st_size > 10_000


def test_figure_shows_every_prediction_once_in_the_row_of_its_theorem(run):
    table = compute(run)
    axes = ANALYSIS.plot(table).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    theorems = compared(table)["statement"].unique()
    assert [label.rpartition(" ")[2] for label in labels] == [
        f"({name})" for name in sorted(theorems, key=lambda name: int(name[1:]))
    ]
    assert not axes.texts  # nothing fails
    drawn = sum(len(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "None")
    assert drawn == len(table)


@pytest.mark.parametrize("compute", [mask_theory.compare, claims.compute])
def test_no_runs_are_one_sentence(compute):
    with pytest.raises(UserError, match="recorded nothing"):
        compute([])
