"""The tables of docs/why-rank-dropout.md, as Markdown, from the CSV files of results."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from analyses import kit
from analyses.claims.registered import form_of
from experiments.comparisons import AT_ARMS_RATE, PRIMARY, difference

ACCURACY = "test_exact_match"
MARKED = re.compile(r"<!-- table (?P<name>\S+) -->\n(?P<table>.*?)<!-- end -->", re.DOTALL)


def difference_table(rows: pd.DataFrame, *, baseline: str) -> str:
    """Write the differences to the baseline: loss at the validated temperature, and exact match.

    Args:
        rows: of `comparisons.compare`.
        baseline: the arm compared with.
    """
    rows = rows[rows["against"] == baseline]
    rows = rows[~rows["regime"].str.startswith("slope")]
    columns = {
        "loss, own rates": (PRIMARY, "own"),
        "loss, equal rates": (PRIMARY, "equal"),
        "loss, both at the arm's rate": (PRIMARY, AT_ARMS_RATE),
        "exact match, own": (ACCURACY, "own"),
    }
    if AT_ARMS_RATE not in set(rows["at"]):
        del columns["loss, both at the arm's rate"]
    lines = [["regime", "arm", "rate", *columns]]
    for (regime, arm), group in rows.groupby(["regime", "arm"], sort=False):
        cells = {
            (outcome, at): interval_text(one.iloc[0], scale=100 if outcome == ACCURACY else 1)
            for (outcome, at), one in group.groupby(["outcome", "at"])
        }
        rate = group.loc[group["at"] == "own", "learning_rate"].iloc[0]
        numbers = [cells.get(place, "") for place in columns.values()]
        lines.append([str(regime), str(arm), f"{rate:g}", *numbers])
    return kit.markdown_table(lines)


def primary_table(rows: pd.DataFrame) -> str:
    """Write the primary comparisons with Holm's p-values and what could have been detected."""
    lines = [["regime", "comparison", "difference", "p (Holm)", "detectable"]]
    lines += [
        [
            str(row.regime),
            f"{row.arm} - {row.against}",
            interval_text(row),
            f"{row.holm:.2g}",
            f"{row.detectable:.3f}",
        ]
        for row in rows[rows["primary"]].itertuples()
    ]
    return kit.markdown_table(lines)


def grid_table(rows: pd.DataFrame) -> str:
    """Write the primary outcome's differences at own rates, arms as columns."""
    rows = rows[(rows["outcome"] == PRIMARY) & (rows["at"] == "own")]
    rows = rows[~rows["regime"].str.startswith("slope")]
    arms = sorted(rows["arm"].unique())
    lines = [["regime", *arms]]
    for regime, group in rows.groupby("regime", sort=False):
        cells = {row.arm: interval_text(row) for row in group.itertuples()}
        lines.append([str(regime), *(cells.get(arm, "") for arm in arms)])
    return kit.markdown_table(lines)


def pilot_table(rows: pd.DataFrame) -> str:
    """Write the means over seeds of single runs, by arm and learning rate, of what was measured."""
    columns = {
        "test_calibrated_loss": "test loss at the validated temperature",
        "eval_response_loss_at_50": "validation loss after 50 steps",
        "train_exchanged_response_loss": "training loss on exchanged examples",
    }
    columns = {name: title for name, title in columns.items() if name in rows}
    lines = [["regime", "arm", "rate", "runs", *columns.values()]]
    for (regime, arm, rate), group in rows.groupby(["regime", "arm", "learning_rate"]):
        means = [f"{group[column].mean():.3f}" for column in columns]
        lines.append([str(regime), str(arm), f"{rate:g}", str(len(group)), *means])
    return kit.markdown_table(lines)


def inference_table(rows: pd.DataFrame) -> str:
    """Write the differences of ways of inference to the full update, at validated temperatures."""
    head = ["regime", "arm", "inference", "loss at the validated temperature", "p (Holm)"]
    lines = [[*head, "plain loss"]]
    for (regime, arm, predictor, scale), group in rows.groupby(
        ["regime", "arm", "predictor", "scale"], sort=False
    ):
        of = group.set_index("outcome")
        name = f"update times {scale:g}" if predictor == "scaled" else str(predictor)
        calibrated, plain = (
            interval_text(of.loc[outcome]) for outcome in ("calibrated_loss", "loss")
        )
        holm = float(of["holm"].loc["calibrated_loss"])
        p_value = "" if math.isnan(holm) else f"{holm:.2g}"
        lines.append([str(regime), str(arm), name, calibrated, p_value, plain])
    return kit.markdown_table(lines)


def rank_table(rows: pd.DataFrame) -> str:
    """Write entropy effective ranks of single updates and of means over mask seeds."""
    lines = [["regime", "arm", "of", "entropy effective rank", "minus that of", "difference"]]
    names = {
        "single_entropy": "single runs",
        "mean_entropy": "mean over mask seeds",
        "crossed_entropy": "mean over mask seeds, crossed",
    }
    for (_, arm), group in rows.groupby(["regime", "arm"], sort=False):
        of = group.set_index("quantity")
        has_mask_seeds = "crossed_entropy" in of.index
        for quantity, name in names.items():
            if quantity == "single_entropy" or has_mask_seeds:
                row = of.loc[quantity]
                itself = row["against"] == arm
                against = f"{row['against']}, planted" if "crossed" in quantity else row["against"]
                compared = [] if itself else [against, interval_text(row, form="+.2f")]
                cells = [row["regime"], arm, name, f"{row['arm_mean']:.2f}", *compared]
                lines.append([*map(str, cells), *[""] * (len(lines[0]) - len(cells))])
    return kit.markdown_table(lines)


def equal_norm_table(rows: pd.DataFrame) -> str:
    """Write entropy effective ranks at equal Frobenius norm of dW, paired by seed."""
    head = ["regime", "arm", "at norm", "entropy effective rank", "minus that of", "difference"]
    lines = [head]
    for (regime, arm, against), group in rows.groupby(["regime", "arm", "against"], sort=False):
        if arm != against:
            both = (group["entropy"] - group["baseline_entropy"]).to_numpy()
            interval = interval_text(pd.Series(difference(both)), form="+.2f")
            norm, rank = f"{group['norm'].mean():.2f}", f"{group['entropy'].mean():.2f}"
            lines.append([str(regime), str(arm), norm, rank, str(against), interval])
    return kit.markdown_table(lines)


def claims_table(rows: pd.DataFrame) -> str:
    """Write the verdicts on the paper's claims, and the differences that decided them.

    Differences that were not measured are left out; claims without any are in the last line.

    Args:
        rows: of `verdicts.verdict_table`.
    """
    lines = [["claim", "rests on", "predicted", "difference", "p (Holm)", "shows", "verdict"]]
    measured = rows[rows["difference"].notna()]
    for _, of_claim in measured.groupby("claim", sort=False):
        lines += _claim_lines(of_claim)
    untested = rows.loc[~rows["claim"].isin(measured["claim"]), "claim"].unique()
    return kit.markdown_table([*lines, [", ".join(untested), *[""] * 5, "not tested"]])


def _claim_lines(rows: pd.DataFrame) -> list[list[str]]:
    """Write the differences of one claim; the first line names it."""
    lines = []
    for row in rows.itertuples():
        rates = "own rates" if row.rates == "own" else "LoRA's rate"
        numbers = interval_text(row, form=form_of(str(row.unit)))
        lines.append(
            [
                "",
                f"{str(row.experiment).upper()}, {row.regime}: {row.comparison}, {row.outcome}, "
                f"{rates}",
                str(row.predicted),
                f"{numbers} {row.unit}, n = {row.n:.0f}",
                f"{row.p_holm:.2g}",
                str(row.shows),
                "",
            ]
        )
    claim = rows.iloc[0]
    lines[0][0] = f"**{claim['claim']}** ({claim['place']})"
    lines[0][-1] = f"**{claim['verdict']}**"
    return lines


def interval_text(row: object, *, scale: float = 1.0, form: str = "+.3f") -> str:
    """Write a difference and its interval.

    >>> interval_text(pd.Series({"difference": -0.0561, "low": -0.0824, "high": -0.0301}))
    '-0.056 [-0.082, -0.030]'
    """
    form = "+.1f" if scale == 100 else form
    mean, low, high = (scale * getattr(row, name) for name in ("difference", "low", "high"))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


WRITERS = {
    "differences": lambda rows: difference_table(rows, baseline="LoRA"),
    "primary": primary_table,
    "grid": grid_table,
    "inference": inference_table,
    "ranks": rank_table,
    "claims": claims_table,
    "equal-norm": equal_norm_table,
    "pilot": pilot_table,
}
FILES = {
    "primary": "differences",
    "grid": "differences",
    "inference": "inference-differences",
    "ranks": "rank-differences",
}


def table_text(name: str, results: Path) -> str:
    """Write a table by its name in the text, such as `x2-primary`.

    Args:
        name: experiment and kind; of all together the kind alone.
        results: the folder of the CSV files.
    """
    kind = next(kind for kind in WRITERS if name == kind or name.endswith(f"-{kind}"))
    rows = pd.read_csv(results / f"{name.removesuffix(kind)}{FILES.get(kind, kind)}.csv")
    return WRITERS[kind](rows)


def with_tables(text: str, results: Path) -> str:
    """Fill in the marked tables of a text anew."""

    def filled(match: re.Match[str]) -> str:
        table = table_text(match["name"], results)
        return f"<!-- table {match['name']} -->\n{table}\n<!-- end -->"

    return MARKED.sub(filled, text)


def marked_tables(text: str) -> Iterable[str]:
    """Name the tables of a text."""
    return [match["name"] for match in MARKED.finditer(text)]
