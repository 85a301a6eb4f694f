"""Paired differences of planted scores, and the command on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.comparisons.scores import AVERAGE
from analyses.paired_differences import ANALYSIS, compute
from analyses.paired_differences.layout import as_markdown
from subspace_lab.errors import UserError
from subspace_lab.evaluation import records
from subspace_lab.runs.run import Run
from tests.analyses.scored_runs import ROWS, write_run
from tests.training.conftest import command


@pytest.fixture
def runs(tmp_path: Path) -> tuple[list[Run], dict[str, np.ndarray]]:
    """LoRA and PiSSA under three seeds, on two tasks; loss (seeds, rows) by method and task."""
    rng = np.random.default_rng(0)
    losses = {
        f"{method} {task}": rng.uniform(0.5, 1.5, (3, ROWS))
        for method in ("lora", "pissa")
        for task in ("boolq", "arc_easy")
    }
    found = [
        write_run(
            tmp_path / f"{method}-{seed}",
            seed=seed,
            method=method,
            losses={task: losses[f"{method} {task}"][seed] for task in ("boolq", "arc_easy")},
        )
        for method in ("lora", "pissa")
        for seed in range(3)
    ]
    return found, losses


def row(table: pd.DataFrame, configuration: str, task: str, measure: str) -> pd.Series:
    wanted = {"configuration": configuration, "task": task, "measure": measure}
    (found,) = [r for _, r in table.iterrows() if all(r[k] == v for k, v in wanted.items())]
    return found


def test_differences_are_paired_by_seed_and_row(runs):
    known, losses = runs
    table = compute(known)
    difference = losses["pissa boolq"] - losses["lora boolq"]
    found = row(table, "PiSSA", "boolq", "loss")
    expected = stats.ttest_1samp(difference.mean(1), 0).confidence_interval(0.95)
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["difference_low"] == pytest.approx(expected.low)
    assert found["difference_high"] == pytest.approx(expected.high)
    assert found["examples_error"] == pytest.approx(stats.sem(difference.mean(0)))
    right = (losses["pissa boolq"] < 1).mean() - (losses["lora boolq"] < 1).mean()
    assert row(table, "PiSSA", "boolq", "accuracy")["difference"] == pytest.approx(right)
    assert (found["seeds"], found["examples"]) == (3, ROWS)
    assert np.isnan(row(table, "LoRA", "boolq", "loss")["difference"])


def test_the_average_weighs_tasks_equally(runs):
    known, losses = runs
    found = row(compute(known), "PiSSA", AVERAGE, "loss")
    differences = [losses[f"pissa {t}"] - losses[f"lora {t}"] for t in ("boolq", "arc_easy")]
    assert found["difference"] == pytest.approx(np.mean([d.mean() for d in differences]))
    errors = [stats.sem(d.mean(0)) for d in differences]
    assert found["examples_error"] == pytest.approx(np.hypot(*errors) / 2)


def test_only_common_seeds_are_paired_and_the_others_named(runs, tmp_path):
    known, losses = runs
    worse = {task: losses[f"lora {task}"][0] + 0.25 for task in ("boolq", "arc_easy")}
    once = write_run(tmp_path / "dora", seed=0, method="dora", losses=worse)
    unpaired = write_run(tmp_path / "milora", seed=7, method="milora", losses=worse)
    table = compute([*known, once, unpaired])
    found = row(table, "DoRA", "boolq", "loss")
    assert found["difference"] == pytest.approx(0.25)
    assert found["paired_seeds"] == 1
    assert np.isnan(found["difference_low"])  # one seed has no interval
    assert np.isnan(row(table, "MiLoRA", "boolq", "loss")["difference"])
    assert compute([*known, once]).attrs["remarks"] == []
    assert compute([*known, once, unpaired]).attrs["remarks"] == [
        f"MiLoRA, seed 7: not paired, since LoRA has no accuracy of {task} for that seed"
        for task in ("boolq", "arc_easy")
    ]


@pytest.mark.parametrize("prompts", [[*range(1, ROWS), 0], [0, *range(100, 99 + ROWS)]])
def test_runs_scored_on_different_examples_are_refused(runs, tmp_path, prompts):
    known, losses = runs
    other = write_run(
        tmp_path / "dora", seed=0, method="dora", losses={"boolq": losses["lora boolq"][0]},
        prompts=prompts,
    )  # fmt: skip
    with pytest.raises(UserError) as refused:
        compute([*known, other])
    for said in (
        "boolq was not evaluated on the same examples in",
        *(str(run.path) for run in [*known, other]),
        "python -m subspace_lab.evaluate --run RUN --tasks boolq --metric exact_match",
    ):
        assert said in str(refused.value)
    short = write_run(
        tmp_path / "short", seed=1, method="dora", losses={"boolq": losses["lora boolq"][0, :10]}
    )
    with pytest.raises(UserError, match=r"\(40 examples\); .*short \(10 examples\)"):
        compute([*known, short])


def test_repeated_prompts_are_kept_and_the_mean_is_the_summarys(tmp_path):
    twice = [0, 0, *range(1, ROWS - 1)]
    rng = np.random.default_rng(1)
    losses = {method: rng.uniform(0.5, 1.5, ROWS) for method in ("lora", "dora")}
    losses["lora"][:2], losses["dora"][:2] = [0.5, 1.5], [1.5, 1.5]
    found = [
        write_run(tmp_path / method, seed=0, method=method, losses={"boolq": values}, prompts=twice)
        for method, values in losses.items()
    ]
    table = compute(found)
    for run, name in zip(found, ("LoRA", "DoRA"), strict=True):
        mean = row(table, name, "boolq", "accuracy")["mean"]
        assert mean == records.read_summaries(run.path)["boolq"]["value"]
    difference = row(table, "DoRA", "boolq", "loss")
    assert difference["difference"] == pytest.approx((losses["dora"] - losses["lora"]).mean())
    assert difference["examples"] == ROWS


def test_runs_without_scores_are_named(runs, tmp_path):
    known, losses = runs
    nothing = write_run(tmp_path / "nothing", seed=5, losses={})
    partly = write_run(
        tmp_path / "partly", seed=0, method="dora", losses={"boolq": losses["lora boolq"][0]}
    )
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "run.json").write_text(json.dumps({"modules": []}))
    said = compute([*known, nothing, partly, Run(tmp_path / "script")]).attrs["remarks"]
    command = "run python -m subspace_lab.evaluate --run"
    assert said == [
        f"{nothing.path} was not evaluated on test examples: {command} {nothing.path} "
        "--tasks boolq arc_easy --metric exact_match",
        f"{partly.path} was not evaluated on test examples of arc_easy: {command} {partly.path} "
        "--tasks arc_easy --metric exact_match",
        f"{tmp_path / 'script'} is not a run of subspace_lab.train",
    ]


def test_tasks_without_right_answers_are_named(runs):
    known, _ = runs
    for run in known:
        table = pd.DataFrame({"score": [7.0, 8.0]})
        summary = records.summarize(table, task="mt_bench", metric="score", column="score")
        records.write(run.path, table, summary)
    assert set(compute(known)["task"]) == {"boolq", "arc_easy", AVERAGE}
    assert compute(known).attrs["remarks"] == [
        "mt_bench: its table does not say which examples are right"
    ]


@pytest.mark.parametrize(("loss", "ends"), [(2.0, "0.0 [0.0, 8.8]"), (0.5, "100.0 [91.2, 100.0]")])
def test_accuracies_of_0_and_100_percent_have_wilsons_interval(tmp_path, loss, ends):
    found = [
        write_run(
            tmp_path / f"{method}{seed}", seed=seed, method=method,
            losses={"boolq": np.full(ROWS, loss)},
        )
        for method in ("lora", "dora")
        for seed in range(3)
    ]  # fmt: skip
    assert f"| LoRA | {ends} (3) |" in as_markdown(compute(found))


def test_seeds_that_all_differ_alike_have_no_interval(tmp_path):
    losses = np.full(ROWS, 2.0)
    found = []
    for seed in range(3):
        for method, right in (("lora", 10), ("dora", 14)):
            values = losses.copy()
            values[seed : seed + right] = 0.5  # other examples under each seed
            folder = tmp_path / f"{method}{seed}"
            found.append(write_run(folder, seed=seed, method=method, losses={"boolq": values}))
    table = compute(found)
    accuracy = row(table, "DoRA", "boolq", "accuracy")
    assert accuracy["difference"] == pytest.approx(0.1)
    assert np.isnan(accuracy["difference_low"])
    text = as_markdown(table)
    assert f"| DoRA | +10.0 ({100 * accuracy['examples_error']:.1f}) |" in text
    assert "| LoRA | 25.0 [14.2, 40.2] (3) |" in text  # Wilson's for 10 of 40


def test_a_diverged_run_makes_no_mean(runs, tmp_path):
    known, losses = runs
    values = losses["pissa boolq"].copy()
    values[1, 3] = np.nan
    diverged = [
        write_run(tmp_path / f"dora{seed}", seed=seed, method="dora", losses={"boolq": one})
        for seed, one in enumerate(values)
    ]
    table = compute([*known, *diverged])
    found = row(table, "DoRA", "boolq", "loss")
    unknown = ["mean", "low", "difference", "difference_low", "p_value"]
    assert np.isnan(found[unknown].tolist()).all()
    assert "| nan (3)" in as_markdown(table)


def test_masks_are_named_and_doubles_refused(runs, tmp_path):
    known, losses = runs
    masked = {
        granularity: write_run(
            tmp_path / granularity,
            seed=0,
            method="droplora",
            granularity=granularity,
            losses={"boolq": losses["lora boolq"][0]},
        )
        for granularity in ("step", "token")
    }
    names = set(compute([*known, *masked.values()])["configuration"])
    assert "DropLoRA (token mask, rescaled, keep_prob 0.5)" in names
    double = write_run(
        tmp_path / "double", seed=0, method="lora", losses={"boolq": losses["lora boolq"][0]}
    )
    with pytest.raises(UserError, match=r"double has the configuration and seeds of .*lora-0"):
        compute([*known, double])
    with pytest.raises(UserError, match="no configuration 'Lora': give --baseline one of LoRA"):
        compute(known, baseline="Lora")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"steps": 7}, "has steps 0 and .*dora has 7"),
        ({"train_size": 12}, "train_size"),
        ({"base": "smollm2"}, "has base pocket and .*dora has smollm2"),
        ({"metric": "generated"}, "metric exact_match in .*lora-0 and generated in .*dora"),
        ({"max_new_tokens": 8}, "max_new_tokens 32 in .* and 8 in"),
        ({"step": 3}, "step None in .* and 3 in"),
    ],
)
def test_runs_of_another_problem_or_evaluation_are_refused(runs, tmp_path, other, message):
    known, losses = runs
    values = {"boolq": losses["lora boolq"][0]}
    with pytest.raises(UserError, match=message):
        compute(
            [*known, write_run(tmp_path / "dora", seed=0, method="dora", losses=values, **other)]
        )


def test_what_is_unlike_most_is_told_and_what_has_no_effect_is_not(runs, tmp_path):
    known, losses = runs
    values = {"boolq": losses["lora boolq"][0]}
    fast = write_run(tmp_path / "fast", seed=0, losses=values, learning_rate=1e-2)
    again = write_run(tmp_path / "again", seed=3, losses=values, keep_prob=0.9)  # without a mask
    table = compute([*known, fast, again])
    names = {"LoRA at 0.0003", "PiSSA at 0.0003", "LoRA at 0.01"}
    assert set(table["configuration"]) == names
    assert row(table, "LoRA at 0.0003", "boolq", "loss")["seeds"] == 4
    assert table["difference"].notna().sum() == 6  # PiSSA's at equal rate, of two tasks and both
    unpaired = write_run(
        tmp_path / "dora", seed=0, method="dora", losses=values, learning_rate=2e-2
    )
    assert compute([*known, unpaired]).attrs["remarks"] == [
        f"{unpaired.path} was not evaluated on test examples of arc_easy: run "
        f"python -m subspace_lab.evaluate --run {unpaired.path} --tasks arc_easy "
        "--metric exact_match",
        "DoRA at learning rate 0.02: not paired at equal rate, since LoRA has no runs at it",
    ]


def test_nothing_to_pair_is_one_sentence(runs, tmp_path):
    known, losses = runs
    with pytest.raises(UserError, match="nothing can be paired with LoRA"):
        compute(known[:3])
    others = {"boolq": losses["lora boolq"][0]}
    unpaired = write_run(tmp_path / "seed", seed=9, method="dora", losses=others)
    with pytest.raises(UserError, match="nothing can be paired with LoRA"):
        compute([*known[:3], unpaired])
    elsewhere = write_run(
        tmp_path / "task", seed=0, method="milora", losses={"piqa": others["boolq"]}
    )
    with pytest.raises(UserError, match="nothing can be paired with LoRA"):
        compute([*known[:3], elsewhere])


def test_tasks_scored_under_disjoint_seeds_have_no_average(tmp_path):
    values = np.linspace(0.5, 1.5, ROWS)
    found = [
        write_run(tmp_path / f"{method}{seed}", seed=seed, method=method, losses={task: values})
        for method in ("lora", "dora")
        for seed, task in enumerate(("boolq", "piqa"))
    ]
    table = compute(found)
    assert set(table["task"]) == {"boolq", "piqa"}
    (panel, _) = ANALYSIS.plot(table).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["DoRA, piqa", "DoRA, boolq"]


def test_validation_rows_are_no_scores(runs, tmp_path):
    known, losses = runs
    chosen = write_run(
        tmp_path / "dora",
        seed=0,
        method="dora",
        split="validation",
        losses={"boolq": losses["lora boolq"][0]},
    )
    assert set(compute([*known, chosen])["configuration"]) == {"LoRA", "PiSSA"}
    with pytest.raises(UserError, match="was evaluated on test examples"):
        compute([chosen])


def test_tables_and_figure_say_what_they_show(runs):
    table = compute(runs[0])
    text = as_markdown(table)
    assert text.count("| LoRA |") == 2  # in the tables of means only
    assert text.count("| PiSSA |") == 4
    accuracy = row(table, "PiSSA", AVERAGE, "accuracy")
    assert f"{100 * accuracy['difference']:+.1f} [" in text
    panels = ANALYSIS.plot(table).axes
    assert [panel.get_xlabel() for panel in panels] == ["percentage points", "nats/token"]


def test_the_command_writes_where_it_says(runs, tmp_path):
    out = tmp_path / "out"
    done = command("analyses.paired_differences", "--runs", f"{tmp_path}/*", "--out", out)
    assert done.returncode == 0, done.stderr
    for name in ("csv", "md", "pdf"):
        assert f"wrote {out / 'paired_differences'}.{name}" in done.stdout
        assert (out / f"paired_differences.{name}").stat().st_size > 0
    (tmp_path / "file").write_text("")
    refused = command(
        "analyses.paired_differences", "--runs", f"{tmp_path}/*", "--out", tmp_path / "file"
    )
    assert refused.returncode == 2 and "choose another location" in refused.stderr
    assert "Not compared" not in done.stdout
    unevaluated = write_run(tmp_path / "later", seed=8, losses={}).path
    again = command("analyses.paired_differences", "--runs", f"{tmp_path}/*", "--out", out)
    for text in (again.stdout, (out / "paired_differences.md").read_text()):
        assert f"Not compared:\n\n- {unevaluated} was not evaluated" in text
    missing = command("analyses.paired_differences", "--runs", f"{tmp_path}/nothing-*")
    assert missing.returncode == 2
    assert "no run matches" in missing.stderr


def test_adapters_of_another_kind_are_told_apart_from_lora(runs, tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text("peft_type: LOHA\nr: 8\n")
    losses = {"boolq": np.full(ROWS, 0.5)}
    other = write_run(tmp_path / "loha", seed=0, losses=losses, peft_config=str(file))
    names = compute([*runs[0], other])["configuration"]
    assert any(name.startswith("LOHA") for name in names)
    assert (names == "LoRA").sum() == (compute(runs[0])["configuration"] == "LoRA").sum()


def trained_only(folder: Path, seed: int, loss: float, **fields: object) -> Run:
    """Write a run that its training scored on 50 test examples, and nothing else."""
    run = write_run(folder, seed=seed, losses={}, validation=(0.5, loss), task="flip", **fields)
    metrics = pd.read_parquet(folder / "metrics.parquet")
    last = {"test_response_loss": loss, "test_exact_match": 0.25, "test_examples": 50.0}
    last |= {"test_calibrated_loss": loss / 2, "validation_calibrated_loss": loss / 3}
    early = dict.fromkeys(last, 9.0)  # of the step that validation chose
    scored = pd.DataFrame([early, last], index=metrics.index)
    pd.concat([metrics, scored], axis=1).to_parquet(folder / "metrics.parquet")
    return run


def test_scores_of_training_need_no_evaluation(tmp_path):
    losses = {"lora": (1.0, 1.3, 1.1), "pissa": (0.8, 1.2, 1.05)}
    runs = [
        trained_only(tmp_path / f"{method}-{seed}", seed, loss, method=method)
        for method, of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds)
    ]
    table = compute(runs)
    difference = np.array(losses["pissa"]) - np.array(losses["lora"])
    expected = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    for measure, factor in (("loss", 1.0), ("calibrated_loss", 0.5)):
        found = row(table, "PiSSA", "flip", measure)
        assert found["difference"] == pytest.approx(factor * difference.mean())
        assert found["difference_low"] == pytest.approx(factor * expected.low)
        assert (found["examples"], found["paired_seeds"]) == (50, 3)
    assert row(table, "LoRA", "flip", "accuracy")["mean"] == 0.25
    assert "Loss at the validated temperature (nats/token)" in as_markdown(table)
    assert not table.attrs["remarks"]
    # Once a run was evaluated, the others have to be as well.
    evaluated = write_run(tmp_path / "dora", seed=0, method="dora", losses={"flip": np.ones(ROWS)})
    with pytest.raises(UserError, match="no configuration 'LoRA'"):
        compute([*runs, evaluated])


def test_runs_that_differ_in_their_mask_seed_only_are_one_repetition(tmp_path):
    lora = [trained_only(tmp_path / f"lora-{s}", s, 1.0 + s, method="lora") for s in (0, 1)]
    masked = {
        (s, m, law): trained_only(
            tmp_path / f"{law}-{s}-{m}", s, 0.5 + s + 0.1 * m + 0.01 * s * m, method="droplora",
            mask_seed=m, granularity=law,
        )
        for s in (0, 1) for m in (200, 201, 202) for law in ("step", "token")
    }  # fmt: skip
    table = compute([*lora, *masked.values()])
    found = row(table, "DropLoRA (step mask, rescaled, keep_prob 0.5)", "flip", "loss")
    by_seed = [0.5 + s + 20.1 + 0.01 * s * 201 - (1.0 + s) for s in (0, 1)]
    assert found["paired_seeds"] == found["seeds"] == 2
    assert found["difference"] == pytest.approx(np.mean(by_seed))
    # With masks in all and one seed of all else, mask seeds are what repeats.
    step, token = ([masked[1, m, law] for m in (200, 201, 202)] for law in ("step", "token"))
    name = "DropLoRA (step mask, rescaled, keep_prob 0.5)"
    table = compute([*step, *token], baseline=name)
    found = row(table, "DropLoRA (token mask, rescaled, keep_prob 0.5)", "flip", "loss")
    assert found["paired_seeds"] == 3
    same = trained_only(tmp_path / "same", 0, 1.0, method="droplora", mask_seed=200)
    with pytest.raises(UserError, match="same has the configuration and seeds of"):
        compute([*lora, *masked.values(), same])
