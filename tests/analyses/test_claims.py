"""Verdicts on the paper's claims say what the runs show, and no more."""

from __future__ import annotations

import html
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analyses import mask_theory
from analyses.claims import compute
from analyses.claims.evidence import Evidence
from analyses.claims.gains import at_loras_settings, better_than_lora
from analyses.claims.paper import CLAIMS
from analyses.claims.registered import found_of, registered, verdict_of
from analyses.claims.texts import to_html, to_markdown, to_text
from analyses.mask_theory import COLUMNS
from analyses.mask_theory.drawn_masks import jaccard
from subspace_lab.adapters.mask import RankMask
from subspace_lab.recording.writer import RunWriter
from subspace_lab.runs.run import Run
from tests.analyses.scored_runs import ROWS, write_run
from tests.analyses.wrong_masks import Fault, drawn, per_sample, train

VERDICTS = {"supported", "supported in part", "contradicted", "undecided", "not tested"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("claims")
    return {
        "step": train(folder / "step", RankMask(0.5)),
        "sgd": train(folder / "sgd", RankMask(0.5), optimizer="sgd"),
        "token": train(folder / "token", RankMask(0.5, granularity="token")),
        "lora": train(folder / "lora", None),
    }


def verdicts(*runs: Run) -> dict[str, str]:
    return compute(runs).set_index("name")["verdict"].to_dict()


def test_every_claim_gets_a_verdict_with_its_evidence(runs):
    table = compute(list(runs.values()))
    assert list(table["name"]) == [claim.name for claim in CLAIMS]
    assert len(table) == 18 and table["name"].is_unique
    assert set(table["verdict"]) <= VERDICTS
    untested = table["verdict"] == "not tested"
    assert table.loc[untested, "shown"].str.contains("needs").all()
    assert table.loc[~untested, "shown"].str.contains("n = ").all()


def test_verdicts_of_all_kinds_of_run_together(runs):
    found = verdicts(*runs.values())
    assert found["one method"] == "contradicted"
    assert found["half the rank"] == "supported in part"
    assert found["only the kept learn"] == "supported in part"  # SGD yes, AdamW no
    assert found["not dropout"] == "supported in part"  # token masks are dropout, step masks not
    assert found["a moving subspace"] == "contradicted"
    for name in ("two masks are one", "less rank is better", "significantly better"):
        assert found[name] == "not tested"
    for name in ("more directions", "no extra cost", "at LoRA's settings", "by subspaces"):
        assert found[name] == "not tested"  # one seed


def test_one_run_alone_tests_what_it_can(runs):
    assert verdicts(runs["step"])["only the kept learn"] == "contradicted"
    assert verdicts(runs["sgd"])["only the kept learn"] == "supported"
    assert verdicts(runs["step"])["one method"] == "not tested"
    token = verdicts(runs["token"])
    assert token["one method"] == "not tested" and token["not dropout"] == "contradicted"
    assert set(verdicts(runs["lora"]).values()) == {"not tested"}


def test_quoted_numbers_are_those_of_mask_theory(runs):
    row = mask_theory.compute(runs["step"]).set_index("prediction").loc["Jaccard of next masks"]
    shown = compute([runs["step"]]).set_index("name").loc["a subspace a step", "shown"]
    assert f"{row['measured']:.3g} (n = {row['samples']:,})" in shown


def test_seeds_are_quoted_together():
    runs = [
        SimpleNamespace(name=name, config={"rank": rank, "seed": seed})
        for name, rank, seed in (("a", 8, 0), ("b", 8, 1), ("c", 4, 0))
    ]
    table = pd.DataFrame({
        "prediction": jaccard.name, "run": ["a", "b", "c"], "measured": [0.331, 0.335, 0.5],
        "samples": [2000, 2000, 100],
    })  # fmt: skip
    assert Evidence(runs, table).quote(jaccard, runs) == (
        "rank 8 (2 runs): 0.331 to 0.335 (n = 2,000 each); c: 0.5 (n = 100)"
    )


def test_a_run_that_was_not_trained_as_it_says_gives_no_verdict_and_is_listed(runs, tmp_path):
    fault = Fault(drawn(per_sample), after=0)
    wrong = train(tmp_path / "wrong", RankMask(0.5), fault=fault)
    table = compute([wrong])
    assert set(table["verdict"]) == {"not tested"}
    (failed,) = table.attrs["excluded"].values()
    assert any("gates constant over examples: predicted 0, measured" in text for text in failed)
    for render in (to_text, to_markdown, to_html):
        assert "wrong is excluded" in render(table)
        assert "gates constant over examples" in render(table)
    assert compute([runs["step"]]).attrs["excluded"] == {}


def scored(folder, scores: dict[str, list[float]], *, rank: int = 8, **settings) -> list[Run]:
    """Write runs with nothing but a last evaluation, one per method and seed."""
    runs = []
    for method, values in scores.items():
        for seed, score in enumerate(values):
            config = {"method": method, "rank": rank, "seed": seed, "task": "pocket"} | settings
            mask = {"keep_prob": 0.5, "granularity": "step", "rescale": True}
            law = {"mask": mask} if method == "droplora" else {}
            path = folder / "-".join(map(str, [method, rank, seed, *settings.values()]))
            module = {"module": "q", "layer": 0, "projection": "q", "m": 4, "n": 4, "r": rank}
            table = pd.DataFrame([module]).assign(scaling=2.0)
            writer = RunWriter(path, {"config": config} | law, table)
            writer.add_metrics(0, {"eval_exact_match": 0.5, "eval_examples": 100})
            writer.add_metrics(9, {"eval_exact_match": score, "eval_examples": 100})
            writer.close()
            runs.append(Run(path))
    return runs


def evidence(runs: list[Run]) -> Evidence:
    return Evidence(runs, pd.DataFrame(columns=COLUMNS).astype({"agrees": "boolean"}))


LORA = [0.50, 0.52, 0.48, 0.51, 0.49, 0.50]


@pytest.mark.parametrize(
    ("masked", "verdict"),
    [
        ([0.60, 0.63, 0.57, 0.60, 0.60, 0.59], "undecided"),
        ([0.40, 0.43, 0.37, 0.40, 0.40, 0.39], "undecided"),
        ([0.60, 0.42, 0.58, 0.41, 0.59, 0.40], "undecided"),
        ([0.60, 0.63, 0.57, 0.60, 0.60], "not tested"),
    ],
)
def test_gains_at_one_learning_rate_decide_nothing(masked, verdict, tmp_path):
    finding = better_than_lora(evidence(scored(tmp_path, {"lora": LORA, "droplora": masked})))
    assert finding.verdict == verdict
    assert f"{len(masked)} paired seeds" in finding.shown


@pytest.mark.parametrize(
    ("best", "verdict"), [(10, "supported"), (0, "undecided"), (-10, "contradicted")]
)
def test_each_at_its_own_rate_decides(best, verdict, tmp_path):
    """LoRA's best rate is 1e-3, the masks' 2e-3, at which they have `best` more answers right."""
    right = {("lora", 1e-3): 20, ("lora", 2e-3): 10, ("droplora", 1e-3): 10}
    right[("droplora", 2e-3)] = 20 + best
    chosen = {("lora", 1e-3), ("droplora", 2e-3)}
    runs = [
        write_run(
            tmp_path / f"{method}-{rate}-{seed}", seed=seed, method=method, learning_rate=rate,
            losses={"flip": np.where(np.arange(ROWS) < count + seed % 2, 0.5, 1.5)},
            validation=(0.9 if (method, rate) in chosen else 0.1, 1.0),
        )
        for (method, rate), count in right.items()
        for seed in range(6)
    ]  # fmt: skip
    known = evidence(runs)
    (gain,) = known.own_rate_gains
    assert gain.estimate == pytest.approx(best / ROWS)
    finding = better_than_lora(known)
    assert finding.verdict == verdict
    assert "learning rate 0.002 against LoRA's 0.001" in finding.shown
    (at_loras,) = known.gains_at_loras_rate  # where masks have half of LoRA's answers right
    assert at_loras.estimate == pytest.approx(-10 / ROWS)
    assert "learning rate 0.001 against LoRA's 0.001" in at_loras.conditions
    assert at_loras_settings(known).verdict == "contradicted"
    one_rate = [run for run in runs if run.config["learning_rate"] == 2e-3]
    assert better_than_lora(evidence(one_rate)).verdict == "undecided"
    assert at_loras_settings(evidence(one_rate)).verdict == "not tested"


def test_gain_is_the_mean_difference_over_seeds(tmp_path):
    masked = [value + gain for value, gain in zip(LORA, (1, 2, 3, 1, 2, 3), strict=True)]
    (gain,) = evidence(scored(tmp_path, {"lora": LORA, "droplora": masked})).gains
    assert gain.difference.difference.estimate == pytest.approx(2)
    assert gain.conditions == "100 test examples"


@pytest.mark.parametrize("own", ["init_seed", "data_seed"])
def test_runs_of_one_seed_that_differ_in_another_are_paired_each(own, tmp_path):
    runs = [
        run
        for value, gain in enumerate((0.1, 0.2, 0.6))
        for run in scored(tmp_path, {"lora": [0.3], "droplora": [0.3 + gain]}, **{own: value})
    ]
    (gain,) = evidence(runs).gains
    assert gain.seeds == 3 and gain.estimate == pytest.approx(0.3)


def test_mask_seeds_share_their_lora_run_and_are_one_repetition(tmp_path):
    runs = scored(tmp_path, {"lora": [0.3, 0.3]})
    for value, gains in enumerate([(0.1, 0.2), (0.3, 0.6)]):
        masked = {"droplora": [0.3 + gain for gain in gains]}
        runs += scored(tmp_path, masked, mask_seed=value)
    (gain,) = evidence(runs).gains
    assert gain.by_seed == pytest.approx({(0,): 0.2, (1,): 0.4})


def test_runs_at_several_rates_are_compared_at_each(tmp_path):
    runs = [
        run
        for rate, gain in ((1e-3, 0.1), (2e-3, 0.2))
        for run in scored(tmp_path, {"lora": [0.3], "droplora": [0.3 + gain]}, learning_rate=rate)
    ]
    assert [gain.estimate for gain in evidence(runs).gains] == pytest.approx([0.1, 0.2])


def test_tables_hold_a_row_per_claim_and_escape(runs):
    table = compute([runs["step"]])
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == len(CLAIMS) + 2
    assert all(line.replace("\\|", "").count("|") == 6 for line in lines)
    page = to_html(table.assign(shown="a < b & c"))
    assert page.count("<h3>") == len(CLAIMS) and "a &lt; b &amp; c" in page


def test_what_the_experiments_found_stands_beside(runs):
    table = compute([runs["step"]]).set_index("name")
    row = registered().set_index("claim").loc["at LoRA's settings"].iloc[0]
    number = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    assert number in table.loc["at LoRA's settings", "registered"]
    assert f"n = {row['n']:.0f}" in table.loc["at LoRA's settings", "registered"]
    for render in (to_text, to_markdown, to_html):
        page = " ".join(html.unescape(render(table.reset_index())).split())
        assert number in page and verdict_of("at LoRA's settings") in page
    for claim in CLAIMS:
        assert verdict_of(claim.name) in VERDICTS
        assert bool(found_of(claim.name)) == (verdict_of(claim.name) != "not tested")


def test_command_prints_and_writes(command, runs, tmp_path):
    found = command("claims", "--run", runs["step"].path, "--out", tmp_path)
    assert found.code == 0, found.err
    assert "only the kept learn: contradicted" in found.out
    saved = json.loads((tmp_path / "claims.json").read_text())
    assert len(saved["summary"]) == len(pd.read_parquet(tmp_path / "claims.parquet")) == 18
    assert (tmp_path / "claims.md").read_text().startswith("| the paper says |")
    assert "<h3>" in (tmp_path / "claims.html").read_text()


def test_an_evaluation_before_the_end_of_training_is_no_result(tmp_path):
    runs = scored(tmp_path, {"lora": LORA, "droplora": LORA})
    assert evidence(runs).gains
    for run in runs:
        metrics = run.metrics
        metrics.loc[metrics["step"] > 0, "eval_exact_match"] = float("nan")
        metrics.to_parquet(run.path / "metrics.parquet")
    assert not evidence(runs).gains
