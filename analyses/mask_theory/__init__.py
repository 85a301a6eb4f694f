"""Does the run do what theory says? Every prediction that its record can test, with a verdict.

    python -m analyses.mask_theory --run RUN [--run RUN2 ...]

Three kinds of comparison, distinguished in the table and the figure:

    exact       true of every draw, up to rounding: masks are the law's function, one mask per step
                for all examples, tokens and micro-batches, steps of dropped directions ...
    sampling    true on average over random masks, within the limits that chance keeps in 9,999 of
                10,000 correct runs, by the quantiles of the statistic's law: mean kept ...
    indicative  rests on assumptions that a real run does not meet, and gets no verdict: how much
                AdamW's momentum moves masked directions, how far a factor moves beside LoRA's ...

Only some of them test the training itself: what the layers did (the gates observed during
training) and what the weights did (the cores), compared with what the run says of itself. Tests of
the masks drawn (the random generator and its record), of the initialization, of what the trained
model does, and identities that hold for any weights are counted apart. `power` states the smallest
deviation that would be noticed in at least 80 % of runs of this size, in `unit`; a comparison that
could notice none is not counted. Runs that share a seed may share masks and first weights: what
they `repeat` counts once.

What a record cannot test is listed as `not testable`, with the reason: token masks do not belong to
a step, so most of T1 needs step masks; the steps of dropped directions need cores of every step;
what holds under a squared loss only (T8, T9, T14) is beyond all runs of language models. With a
LoRA run among the runs that differs in the mask only, masked runs are compared to it. The tables
of `analyses.ensemble_vs_single` and `analyses.gate_expansion` are used if they lie in the run's
folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from analyses import kit
from analyses.mask_theory import (
    against_lora,
    angles,
    displacements,
    drawn_masks,
    dropped_directions,
    first_steps,
    inference,
    masked_updates,
    observed_gates,
    out_of_range,
)
from analyses.mask_theory.figure import compared, draw, summarize
from analyses.mask_theory.prediction import Prediction, predictions_of
from analyses.mask_theory.record import groups_of
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

COLUMNS = ["run", "prediction", "where", "statement", "tests", "kind", "predicted", "measured"]
COLUMNS += ["tolerance", "agrees", "power", "unit", "probability", "samples", "basis", "meaning"]
COLUMNS += ["evidence", "repeats"]
DTYPES = dict.fromkeys(["run", "where", "statement", "tests", "kind", "unit"], "category")
DTYPES |= dict.fromkeys(["predicted", "measured", "tolerance", "power", "probability"], "float")
DTYPES |= {"agrees": "boolean"}

TOPICS = (
    *(drawn_masks, observed_gates, angles, masked_updates),
    *(first_steps, displacements, dropped_directions, against_lora, out_of_range),
)


def compute(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
    others: Sequence[Run] = (),
) -> pd.DataFrame:
    """Compute the table; a row is a prediction about one group of modules of a run.

    Args:
        run: a run, or adapters of another tool (which can test little).
        steps: use cores of these steps only; None: all. All masks are always used.
        modules: only these modules; None: all.
        others: runs among which a LoRA run to compare with is sought.

    Returns:
        Columns run, prediction (its name), where (rank and number of modules), statement (number of
        the theorem), tests (training, masks drawn, initialization, trained model, identity), kind
        (exact, sampling, indicative, not testable), predicted, measured, tolerance (largest
        difference that agrees, on the side of measured; of indicative rows a scale), agrees
        (missing where only indicative, not testable, or where it cannot fail), power (smallest
        deviation that would be noticed in at least 80 % of runs of this size; inf: none), unit (of
        power), probability (in a correct run, of a deviation as large), samples, basis (of the
        tolerance; why it is indicative or not testable), meaning (of a disagreement), evidence
        (hash of the masks or first weights tested), repeats (whether an earlier run has the same,
        see `join`).
    """
    lora = against_lora.find_lora(run, others)
    rows: list[dict[str, Any]] = []
    for group in groups_of(run, steps=steps, modules=modules, lora=lora):
        where = f"r = {group.rank}, {len(group.modules)} modules"
        evidence = {tests: group.evidence(tests) for tests in ("masks drawn", "initialization")}
        for row in _rows(predictions_of(*TOPICS), group):
            known = evidence.get(row["tests"], "") if row["kind"] != "not testable" else ""
            rows.append(row | {"where": where, "evidence": known})
    of_model = _rows(predictions_of(inference), inference.read_tables(run))
    rows += [row | {"where": "whole model", "evidence": ""} for row in of_model]
    table = pd.DataFrame(rows, columns=COLUMNS).assign(run=run.name, repeats=False)
    return table.astype(DTYPES)


def _rows(predictions: Iterable[Prediction], subject: object) -> Iterator[dict[str, Any]]:
    return filter(None, (prediction.row(subject) for prediction in predictions))


def join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Join the tables of several runs, and mark rows whose evidence an earlier run has as well."""
    table = kit.concatenate(tables)
    if table.empty:
        return table
    same = table.duplicated(["prediction", "where", "evidence", "measured"])
    table["repeats"] = same & (table["evidence"] != "")
    return table


def compare(
    runs: Sequence[Run], *, steps: str | None = None, modules: Sequence[str] | None = None
) -> pd.DataFrame:
    """Compute the table of several runs together; masked ones are compared to a LoRA among them.

    `steps` (of cores) and `modules` are as the command line names them; None: all.

    Raises:
        UserError: if no run recorded anything that a prediction is about.
    """
    table = join(
        compute(
            run,
            steps=kit.select_steps(run, run.steps, steps),
            modules=kit.select_modules(run, modules),
            others=runs,
        )
        for run in runs
    )
    if table.empty or compared(table).empty:
        raise UserError("these runs recorded nothing that a prediction is about")
    return kit.label(table, runs)


ANALYSIS = kit.Analysis(
    name="mask_theory",
    description=__doc__,
    question="which of the theory's predictions hold in these runs?",
    needs=kit.Needs.FACTORS,
    compute=compare,
    plot=kit.Plot(draw),
    summarize=summarize,
    reading="Each row is a prediction that the record can test: how far the measurement is from "
    "it, in units of its tolerance. Filled marks inside the band agree; hollow ones rest on "
    "assumptions that a real run does not meet, and get no verdict.",
    compares=True,
    join=join,
    position=90,
)
