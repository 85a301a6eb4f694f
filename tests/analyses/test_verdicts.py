"""Every verdict of every claim, from small tables of measured numbers made for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.claims import beside_lora, gains, verdicts
from analyses.claims.differences import Difference, seeds_needed
from analyses.claims.evidence import Evidence
from analyses.claims.paper import CLAIMS
from analyses.mask_theory import observed_gates
from analyses.paper_tables.published import TABLES
from subspace_lab.stats.multiple import holm
from subspace_lab.theory.mask_law import MaskLaw, mask_law

RANK, Q = 8, 0.5


@dataclass(eq=False)
class Stub:
    """What verdicts read of a run besides the table of mask_theory."""

    name: str
    mask_law: MaskLaw | None = None
    config: dict[str, Any] = field(default_factory=dict)
    gates_chosen: bool = False


def masked(name: str, granularity: str = "step", **law: Any) -> Stub:
    return Stub(
        name,
        mask_law(**{"keep_prob": Q, "granularity": granularity, **law}),
        {"method": "droplora"},
    )


def row(run: str, prediction: str, measured: float, **fields: Any) -> dict[str, Any]:
    known = {"run": run, "prediction": prediction, "measured": measured, "predicted": 0.0}
    return known | {"samples": 100, "agrees": pd.NA} | fields


def verdict(finding, runs: list[Stub], rows: list[dict[str, Any]]) -> str:
    columns = ["run", "prediction", "measured", "predicted", "samples", "agrees"]
    table = pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(rows[0] if rows else [])])))
    return finding(Evidence(runs, table.astype({"agrees": "boolean"}))).verdict  # type: ignore[arg-type]


def gates(run: str, *, tokens_share: bool, token_masks: bool, factor: float) -> list[dict]:
    """Rows about the gates of a run: whether tokens share a mask, and the factor on it."""
    if token_masks:
        overlap = RANK * Q if tokens_share else RANK * Q**2
        shared = row(run, observed_gates.tokens_differ.name, overlap, predicted=RANK * Q**2)
    else:
        shared = row(run, observed_gates.over_tokens.name, 0 if tokens_share else 7)
    return [shared, row(run, observed_gates.rescale.name, factor)]


@pytest.mark.parametrize(
    ("step", "token", "expected"),
    [
        ((True, 1.0), (False, 2.0), "contradicted"),
        ((True, 2.0), (False, 2.0), "contradicted"),
        ((True, 2.0), (True, 2.0), "supported"),
        ((True, 1.0), (True, 2.0), "supported in part"),
        ((False, 2.0), (False, 2.0), "supported"),
        ((False, 2.0), (True, 2.0), "undecided"),
        ((True, 2.0), None, "not tested"),
        (None, (False, 2.0), "not tested"),
    ],
)
def test_same_method(step, token, expected):
    rows = []
    for name, known in (("step", step), ("token", token)):
        if known:
            share, factor = known
            rows += gates(name, tokens_share=share, token_masks=name == "token", factor=factor)
    runs = [masked("step", "step"), masked("token", "token")]
    assert verdict(verdicts.same_method, runs, rows) == expected


@pytest.mark.parametrize(
    ("jaccard", "varies", "left", "expected"),
    [
        (0.05, 0, None, "supported"),
        (0.33, 0, None, "supported in part"),
        (0.05, 3, None, "contradicted"),
        (None, 0, 0, "contradicted"),
        (None, 0, 80, "supported"),
        (0.05, 0, 0, "supported in part"),
        (None, 0, None, "not tested"),
    ],
)
def test_one_subspace_a_step(jaccard, varies, left, expected):
    rows = []
    if jaccard is not None:
        rows += [
            row("step", "Jaccard of next masks", jaccard),
            row("step", observed_gates.over_examples.name, varies),
        ]
    if left is not None:
        rows += [row("token", "directions that step 1 left", left)]
    runs = [masked("step", "step"), masked("token", "token")]
    assert verdict(verdicts.one_subspace_a_step, runs, rows) == expected


@pytest.mark.parametrize(
    ("kept", "exceptions", "entropy", "stable", "expected"),
    [
        (4.0, 0, 0.5, 0.5, "supported"),  # flat orthonormal factors
        (4.0, 0, 0.51, 0.65, "supported in part"),  # Gaussian factors
        (4.0, 0, 0.7, 0.85, "supported in part"),
        (6.0, 0, 0.8, 0.9, "contradicted"),
        (4.0, 9, 0.8, 0.9, "contradicted"),
    ],
)
def test_half_the_rank(kept, exceptions, entropy, stable, expected):
    rows = [
        row("step", "kept directions, mean", kept, predicted=RANK * Q),
        row("step", "masked rank is the kept count", exceptions),
        row("step", "masked entropy rank over full", entropy),
        row("step", "masked stable rank over full", stable),
    ]
    assert verdict(verdicts.half_the_rank, [masked("step")], rows) == expected
    assert verdict(verdicts.half_the_rank, [masked("step", keep_prob=0.7)], rows) == "not tested"
    assert verdict(verdicts.half_the_rank, [masked("step")], rows[1:]) == "not tested"


@pytest.mark.parametrize(
    ("adam", "sgd", "expected"),
    [
        (0.5, None, "contradicted"),
        (0.0, None, "supported"),
        (None, 0, "supported"),
        (None, 5, "contradicted"),
        (0.5, 0, "supported in part"),
        (None, None, "not tested"),
    ],
)
def test_only_the_kept(adam, sgd, expected):
    rows = [] if adam is None else [row("step", "B's displacement while masked", adam)]
    rows += [] if sgd is None else [row("sgd", "masked directions stand still", sgd)]
    assert verdict(verdicts.only_the_kept, [masked("step"), masked("sgd")], rows) == expected


@pytest.mark.parametrize(
    ("granularity", "share", "factor", "law", "expected"),
    [
        ("token", False, 2.0, {}, "contradicted"),
        ("token", True, 2.0, {}, "supported"),
        ("token", False, 1.0, {"rescale": False}, "supported"),
        ("token", False, 2.0, {"sampling": "exact-k"}, "supported"),
        ("step", True, 2.0, {}, "supported"),
    ],
)
def test_unlike_dropout(granularity, share, factor, law, expected):
    token = granularity == "token"
    rows = gates("run", tokens_share=share, token_masks=token, factor=factor)
    assert verdict(verdicts.unlike_dropout, [masked("run", granularity, **law)], rows) == expected


def test_unlike_dropout_in_part_and_untested():
    rows = gates("token", tokens_share=False, token_masks=True, factor=2.0)
    rows += gates("step", tokens_share=True, token_masks=False, factor=2.0)
    runs = [masked("token", "token"), masked("step")]
    assert verdict(verdicts.unlike_dropout, runs, rows) == "supported in part"
    assert verdict(verdicts.unlike_dropout, runs, []) == "not tested"


@pytest.mark.parametrize(
    ("plain", "moving", "expected"),
    [
        ([0.2], [20.0], "supported"),
        ([0.2], [20.0, 0.3], "supported in part"),
        ([0.2], [0.3], "contradicted"),
        ([20.0], [25.0], "contradicted"),
        ([20.0], [45.0], "supported in part"),
    ],
)
def test_moving_subspace(plain, moving, expected):
    assert verdicts.moving_verdict(plain, moving) == expected


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([[[1, 0], [1, 0], [0, 1]]], "contradicted"),
        ([[[1, 0], [1, 1], [0, 1]]], "supported"),
        ([[[1, 0], [1, 1]], [[1, 0], [1, 0]]], "supported in part"),
        ([], "not tested"),
    ],
)
def test_no_subspace_twice(masks, expected):
    runs = []
    for i, drawn in enumerate(masks):
        run = masked(f"run {i}")
        run.mask_steps = list(range(len(drawn)))
        run.modules = pd.DataFrame({"r": [2]})
        run.masks_of_rank = lambda rank, drawn=drawn: (None, np.array(drawn, dtype=bool)[:, None])
        runs.append(run)
    assert verdict(verdicts.never_twice, runs, []) == expected


def test_a_run_that_fails_gives_no_verdict_but_one_about_identities_does():
    rows = gates("token", tokens_share=False, token_masks=True, factor=2.0)
    run = [masked("token", "token")]
    failed = row("token", "some prediction", 3.0, agrees=False)
    assert verdict(verdicts.unlike_dropout, run, [*rows, failed]) == "not tested"
    about = [{**one, "tests": "training"} for one in [*rows, failed]]
    assert verdict(verdicts.unlike_dropout, run, about) == "not tested"
    about = [{**one, "tests": "identity"} for one in [*rows, failed]]
    assert verdict(verdicts.unlike_dropout, run, about) == "contradicted"


# Differences to LoRA


def comparison(differences: list[float], label: str = "masked", **config: Any) -> Difference:
    by_seed = dict(enumerate(differences))
    return Difference(label, "exact match", by_seed, "100 test examples", config)


def with_gains(*gains_: Difference, own: Sequence[Difference] = ()) -> Evidence:
    """Evidence of gains at equal learning rates, and of those with each method at its own."""
    evidence = Evidence([], pd.DataFrame({"agrees": pd.array([], dtype="boolean"), "run": []}))
    evidence.__dict__.update(gains=list(gains_), own_rate_gains=list(own))
    return evidence


def around(mean: float, count: int = 10) -> list[float]:
    """Differences with a spread of 0.005 around a mean."""
    return (mean + 0.005 * np.linspace(-1, 1, count)).tolist()


BETTER, WORSE, SAME = around(0.1), around(-0.1), around(0.0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([BETTER], "supported"),
        ([BETTER, BETTER], "supported"),
        ([BETTER, SAME], "supported in part"),
        ([SAME], "undecided"),
        ([BETTER, WORSE], "undecided"),
        ([WORSE, WORSE], "contradicted"),
        ([around(0.1, 5)], "not tested"),
        ([around(0.1, 6), around(0.1, 6)], "not tested"),  # 2 x 2 / 2^6 > 0.05
        ([], "not tested"),
    ],
)
def test_better_than_lora(differences, expected):
    compared = [comparison(d, label=str(i)) for i, d in enumerate(differences)]
    finding = gains.better_than_lora(with_gains(comparison(SAME), own=compared))
    at_equal_rate = gains.better_than_lora(with_gains(*compared))
    if expected == "not tested":
        assert at_equal_rate.verdict == "not tested"
        assert finding.verdict == "undecided"  # the ten seeds at equal rate
    else:
        assert finding.verdict == expected
        assert "each at its own" in finding.shown and "Holm" in finding.shown
        assert at_equal_rate.verdict == "undecided"
        assert "At equal learning rate: " in at_equal_rate.shown
        assert "each at its own, is open" in at_equal_rate.shown


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"a": BETTER, "b": BETTER}, "supported"),
        ({"a": BETTER, "b": SAME}, "undecided"),
        ({"a": BETTER, "b": WORSE}, "contradicted"),
        ({"a": BETTER, "b": around(0.1, 3)}, "undecided"),
        ({"a": around(0.1, 3), "b": around(0.1, 3)}, "not tested"),
        ({"a": BETTER}, "not tested"),
    ],
)
def test_better_on_every_task(tasks, expected):
    compared = [comparison(d, label=t, task=t) for t, d in tasks.items()]
    assert gains.all_tasks(with_gains(own=compared)).verdict == expected
    at_equal_rate = gains.all_tasks(with_gains(*compared)).verdict
    assert at_equal_rate == ("not tested" if expected == "not tested" else "undecided")


def at_ranks(means: dict[int, float], **config: Any) -> list[Difference]:
    draw = np.random.default_rng(0)
    return [
        comparison(
            (mean + 0.005 * draw.normal(size=10)).tolist(), rank=rank, alpha=2 * rank, **config
        )
        for rank, mean in means.items()
    ]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({4: 0.0, 8: 0.05, 16: 0.1}, "supported"),
        ({4: 0.1, 8: 0.05, 16: 0.0}, "contradicted"),
        ({4: 0.1, 8: 0.1, 16: 0.1}, "undecided"),
        ({4: 0.0, 16: 0.1}, "not tested"),
    ],
)
def test_less_gain_at_small_rank(means, expected):
    assert gains.less_gain_at_small_rank(with_gains(*at_ranks(means))).verdict == expected


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({0.3: 0.0, 0.5: 0.05, 0.7: 0.1, 0.9: -0.5}, "supported"),  # 0.9 is beyond the best
        ({0.3: 0.1, 0.5: 0.05, 0.7: 0.0}, "contradicted"),
        ({0.3: 0.1, 0.5: 0.1, 0.7: 0.1}, "undecided"),
        ({0.5: 0.0, 0.7: 0.1, 0.9: 0.2}, "not tested"),
    ],
)
def test_milder_is_better(means, expected):
    by_kept = [
        replace(gain, config={"rank": 16, "keep_prob": kept})
        for gain, kept in zip(at_ranks(means), means, strict=True)
    ]
    assert gains.milder_is_better(with_gains(*by_kept)).verdict == expected


@pytest.mark.parametrize(
    ("token", "expected"),
    [(BETTER, "contradicted"), (SAME, "undecided"), (WORSE, "undecided"), (None, "not tested")],
)
def test_by_subspaces(token, expected):
    own = [comparison(BETTER, "step", granularity="step")]
    own += [comparison(token, "token", granularity="token")] if token else []
    assert gains.by_subspaces(with_gains(own=own)).verdict == expected


def beside(monkeypatch, measured: dict[str, list[float]]) -> Evidence:
    """Evidence whose differences to LoRA are these, by a word of the quantity."""

    def against_lora(self, measure, *, quantity):
        (values,) = [value for word, value in measured.items() if word in quantity]
        return [comparison(values)] if values else []

    monkeypatch.setattr(Evidence, "against_lora", against_lora)
    return with_gains()


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [(BETTER, "supported"), (WORSE, "contradicted"), (SAME, "undecided"), ([0.1], "not tested")],
)
def test_more_directions(monkeypatch, ranks, expected):
    assert beside_lora.more_directions(beside(monkeypatch, {"rank": ranks})).verdict == expected


@pytest.mark.parametrize(
    ("parameters", "times", "expected"),
    [
        ([0.0] * 10, BETTER, "contradicted"),  # slower
        ([0.0] * 10, WORSE, "supported"),
        ([0.0] * 10, SAME, "undecided"),
        ([8.0] * 10, WORSE, "contradicted"),
        ([0.0] * 10, [], "not tested"),
    ],
)
def test_no_extra_cost(monkeypatch, parameters, times, expected):
    evidence = beside(monkeypatch, {"parameters": parameters, "s a step": times})
    assert beside_lora.no_extra_cost(evidence).verdict == expected


def test_gains_are_compared_within_one_kind_of_mask():
    """Token masks gain nothing and step masks 0.1 at every rank, so no gain depends on the rank."""
    kinds = {"token": 0.0, "step": 0.1}
    found = [
        gain
        for kind, mean in kinds.items()
        for gain in at_ranks(dict.fromkeys((4, 8, 16), mean), granularity=kind)
    ]
    for order in (found, found[::-1]):
        assert gains.less_gain_at_small_rank(with_gains(*order)).verdict == "undecided"
        assert len(gains.gain_slopes(order, gains.RANK)) == 2
    one = at_ranks({4: 0.0, 8: 0.05, 16: 0.1}, granularity="step")
    same = at_ranks(dict.fromkeys((4, 8, 16), 0.0), granularity="token")
    assert gains.less_gain_at_small_rank(with_gains(*one, *same)).verdict == "supported in part"


@dataclass
class Drawn:
    estimate: float
    p_value: float


@pytest.mark.parametrize("comparisons", [1, 2, 4, 8])
def test_no_difference_is_called_one_in_at_most_5_percent_of_claims(comparisons):
    """Null configurations that share their LoRA runs, by exact sign-flip tests, ten seeds."""
    draw = np.random.default_rng(comparisons)
    seeds, times = 10, 1500
    patterns = 1 - 2 * ((np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1)
    false = 0
    for _ in range(times):
        lora = draw.normal(size=seeds)
        differences = draw.normal(size=(comparisons, seeds)) - lora
        flipped = abs(differences @ patterns.T)
        observed = abs(differences.sum(1, keepdims=True))
        p = (flipped >= observed - 1e-9).mean(1)
        effects = [Drawn(m, q) for m, q in zip(differences.mean(1), p, strict=True)]
        false += any(gains.signs(effects))
    assert false / times < 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5
    assert seeds >= seeds_needed(comparisons)


def test_holm_against_its_definition():
    draw = np.random.default_rng(0)
    close = [[0.0101, 0.0102, 0.0103, 1, 1]]  # the first is not rejected, so none is
    for p in np.concatenate([draw.uniform(size=(20, 5)) ** 3, close]):
        for level in (0.01, 0.05, 0.2):
            rejected, left = set(), sorted(range(5), key=lambda i: p[i])
            while left and p[left[0]] * len(left) <= level:
                rejected.add(left.pop(0))
            assert set(np.flatnonzero(holm(p) <= level)) == rejected


@pytest.fixture
def ensembles(tmp_path):
    """Give evidence of masked and LoRA runs with tables of ensemble_vs_single."""

    def make(plain: list[float], trained: list[float], *, masks: int = 2, **law: Any) -> Evidence:
        runs: list[Stub] = []
        for method, costs in (("lora", plain), ("droplora", trained)):
            for seed, cost in enumerate(costs):
                run = (
                    masked(f"{method} {seed}", **law)
                    if method == "droplora"
                    else Stub(f"lora {seed}")
                )
                run.config = {"method": method, "seed": seed}
                run.output_folder = tmp_path / method / str(seed)
                run.output_folder.mkdir(parents=True)
                losses = {"full": [1.0], "single": [1.0 + cost] * (masks if run.mask_law else 2)}
                losses["geometric"] = [1.0 + cost / 2]
                rows = [(name, loss) for name, each in losses.items() for loss in each]
                table = pd.DataFrame(rows, columns=["predictor", "loss"])
                table = table.assign(step=4, examples=40, split="test")
                table.to_parquet(run.output_folder / "ensemble_vs_single.parquet")
                runs.append(run)
        columns = {"run": [], "prediction": [], "agrees": pd.array([], dtype="boolean")}
        return Evidence(runs, pd.DataFrame(columns))  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    ("plain", "trained", "expected"),
    [
        (around(0.01, 6), around(0.05, 6), "supported"),
        (around(0.05, 6), around(0.01, 6), "contradicted"),
        (around(0.05, 6), around(0.05, 6)[::-1], "undecided"),
        ([], around(0.05, 6), "undecided"),
        (around(0.01, 4), around(0.05, 4), "undecided"),
        (around(0.01, 6), around(-0.05, 6), "contradicted"),
        (around(0.01, 6), [], "not tested"),
    ],
)
def test_like_an_ensemble(ensembles, plain, trained, expected):
    assert gains.like_an_ensemble(ensembles(plain, trained)).verdict == expected


@pytest.mark.parametrize("other", [{"rescale": False}, {"keep_prob": 0.7}, {"masks": 3}])
def test_an_ensemble_needs_lora_under_the_same_test_masks(ensembles, other):
    finding = gains.like_an_ensemble(ensembles(around(0.01, 6), around(0.05, 6), **other))
    assert finding.verdict == "undecided"
    assert "same test masks" in finding.shown


SIZES = {
    "boolq": 3270, "piqa": 1838, "siqa": 1954, "hellaswag": 10042, "winogrande": 1267,
    "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "values"), [("LLaMA2-7B", (1.1, 1.6)), ("LLaMA3-8B", (1.9, 2.6))]
)
def test_z_values_of_the_papers_average_gain(model, values):
    """The variance of a difference of accuracies is 2 p (1 - p) (1 - correlation) / n."""
    scores = {
        row.method: dict(zip(TABLES[0].columns, row.scores, strict=False))
        for row in TABLES[0].rows
        if row.model == model and not row.cited
    }
    lora, drop = (scores[method] for method in ("LoRA", "DropLoRA"))
    gain = np.mean([drop[task] - lora[task] for task in SIZES])
    variance = (
        sum(
            scores[task] * (100 - scores[task]) / n
            for scores in (lora, drop)
            for task, n in SIZES.items()
        )
        / len(SIZES) ** 2
    )
    (claim,) = (claim for claim in CLAIMS if claim.name == "significantly better")
    for correlation, printed in zip((0, 0.5), values, strict=True):
        assert gain / (variance * (1 - correlation)) ** 0.5 == pytest.approx(printed, abs=0.051)
        assert str(printed) in claim.theory
    assert f"{gain:.2f}" in claim.theory
    assert "0.77" in claim.theory and f"{0.77 * 2**0.5:.2f}" in claim.theory
    assert gain < 0.77 * 2**0.5
