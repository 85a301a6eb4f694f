"""The MT-Bench score: the mean of the judge's scores over questions and both turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class MTBenchScore:
    """Means of the judge's scores; an unscored judgement is excluded, not counted as 0."""

    mean: float  # over both turns
    standard_error: float | None  # of `mean`, over questions (two turns are not independent)
    first_turn: float
    second_turn: float
    by_category: Mapping[str, float]
    questions: int  # with at least one score
    unscored: int  # judgements without a score, of 2 per question


def mt_bench_score(records: pd.DataFrame) -> MTBenchScore:
    """Summarize the table of `judge_answers`.

    >>> records = pd.DataFrame(
    ...     {"question_id": [81, 81, 82, 82], "turn": [1, 2, 1, 2], "category": "writing",
    ...      "score": [9.0, 7.0, 5.0, float("nan")]}
    ... )
    >>> score = mt_bench_score(records)
    >>> score.mean, score.first_turn, score.second_turn, score.unscored
    (7.0, 7.0, 7.0, 1)
    """
    by_turn = records.groupby("turn")["score"].mean()
    by_category = records.groupby("category")["score"].mean()
    by_question = records.groupby("question_id")["score"].mean().dropna()
    return MTBenchScore(
        mean=float(records["score"].mean()),
        standard_error=float(by_question.std(ddof=1) / len(by_question) ** 0.5)
        if len(by_question) > 1
        else None,
        first_turn=float(by_turn.get(1, float("nan"))),
        second_turn=float(by_turn.get(2, float("nan"))),
        by_category={str(name): float(mean) for name, mean in by_category.items()},
        questions=len(by_question),
        unscored=int(records["score"].isna().sum()),
    )
