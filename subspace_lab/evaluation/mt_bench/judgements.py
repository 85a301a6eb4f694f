"""Judging all answers, with every judgement on disk before the next is waited for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from subspace_lab.errors import UserError
from subspace_lab.evaluation.mt_bench.answers import Answers
from subspace_lab.evaluation.mt_bench.cached_lines import CachedLines, content_key
from subspace_lab.evaluation.mt_bench.judge import Judge, judge_messages, parse_score
from subspace_lab.evaluation.mt_bench.questions import TURNS, Material, Question

COLUMNS = ["question_id", "category", "turn", "judge", "judge_prompt", "score", "attempts"]


def judge_answers(
    material: Material,
    answers: Answers,
    judge: Judge,
    *,
    file: Path | str,
    concurrency: int = 4,
) -> pd.DataFrame:
    """Have both turns of every answered question judged.

    A judgement that the file already holds, of the same prompt by the same judge with the same
    options, is not asked for again; so an interrupted run resumes. A reply without a
    score is asked for again, up to `judge.attempts` times, and then stored without one.

    Args:
        material: From `load_material`.
        answers: From `answer`.
        judge: Whom to ask.
        file: JSON-lines file of the judgements: prompt, raw replies, score.
        concurrency: Requests that wait at the same time.

    Returns:
        One row per question and turn: `question_id`, `category`, `turn` (1 or 2), `judge`,
        `judge_prompt`, `score` (nan if the judge never gave one), `attempts`.

    Raises:
        UserError: if the judge does not answer; its earlier replies are in the file.
    """
    stored = CachedLines(Path(file))
    asked = [
        _request(material, question, answers[question.question_id], turn=turn, judge=judge)
        for question in material.questions
        if question.question_id in answers
        for turn in range(1, TURNS + 1)
    ]
    missing = [request for request in asked if request["key"] not in stored.results]
    pool = ThreadPoolExecutor(max_workers=concurrency)
    try:
        futures = [pool.submit(_judge_and_store, judge, request, stored) for request in missing]
        for future in tqdm(as_completed(futures), total=len(futures), desc="judging", disable=None):
            future.result()
    except UserError as error:
        pool.shutdown(cancel_futures=True)
        saved = sum(request["key"] in stored.results for request in asked)
        raise UserError(
            f"{error}; {saved} of {len(asked)} judgements are saved in {stored.path}: fix the "
            "problem and rerun to resume"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    table = pd.DataFrame([stored.results[request["key"]] for request in asked])[COLUMNS]
    return table.astype({"score": float})


def _request(
    material: Material, question: Question, answers: Sequence[str], *, turn: int, judge: Judge
) -> dict[str, Any]:
    messages = judge_messages(material, question, answers, turn=turn)
    return {
        "key": content_key(judge.model, dict(judge.options), messages),
        "question_id": question.question_id,
        "category": question.category,
        "turn": turn,
        "judge": judge.model,
        "options": dict(judge.options),
        "judge_prompt": material.judge_prompt(question, turn).name,
        "messages": messages,
    }


def _judge_and_store(judge: Judge, request: dict[str, Any], stored: CachedLines) -> None:
    replies: list[str] = []
    score = None
    while score is None and len(replies) < judge.attempts:
        replies.append(judge.ask(request["messages"]))
        score = parse_score(replies[-1])
    stored.append({**request, "replies": replies, "score": score, "attempts": len(replies)})
