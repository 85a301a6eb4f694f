"""A model's answers to both turns of the MT-Bench questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from subspace_lab.evaluation.fingerprint import weights_hash
from subspace_lab.evaluation.generation import generate
from subspace_lab.evaluation.mt_bench.cached_lines import CachedLines, content_key
from subspace_lab.evaluation.mt_bench.questions import TURNS, Question
from subspace_lab.tasks.prompts import alpaca_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Template = Literal["alpaca", "chat"]
Answers = Mapping[int, tuple[str, ...]]  # by question_id, one text per turn


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    template: Template = "alpaca",
    max_new_tokens: int = 1024,
    batch_size: int = 16,
    file: Path | str | None = None,
) -> dict[int, tuple[str, ...]]:
    """Answer the first turn of all questions, then the second after the model's own first.

    An answer that the file already holds, of a model of the same weights to the same prompt and of
    the same length at most, is not generated again; so an interrupted run resumes.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        questions: From `load_material`.
        template: `alpaca` for adapters trained with the Alpaca template, `chat` for the
            tokenizer's own chat template.
        max_new_tokens: Of one answer; FastChat's limit is 1024.
        batch_size: Questions answered at a time.
        file: JSON-lines file of the answers, of any models; None: no file.

    Returns:
        The answers to both turns, by `question_id`.
    """
    cached = CachedLines(None if file is None else Path(file))
    fingerprint = weights_hash(model) if file is not None else ""
    answers: list[tuple[str, ...]] = [() for _ in questions]
    for turn in range(1, TURNS + 1):
        rows: list[dict[str, Any]] = []
        for question, given in zip(questions, answers, strict=True):
            prompt = conversation(question.turns, given, template=template, tokenizer=tokenizer)
            key = content_key(fingerprint, prompt, max_new_tokens)
            rows.append(
                {"key": key, "question_id": question.question_id, "turn": turn, "prompt": prompt}
            )
        missing = [row for row in rows if row["key"] not in cached.results]

        def keep(index: int, text: str, rows: list[dict[str, Any]] = missing) -> None:
            cached.append({**rows[index], "answer": text.strip()})

        generate(
            model,
            tokenizer,
            [row["prompt"] for row in missing],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_text=keep,
        )
        answers = [
            (*given, cached.results[row["key"]]["answer"])
            for given, row in zip(answers, rows, strict=True)
        ]
    return {question.question_id: given for question, given in zip(questions, answers, strict=True)}


def conversation(
    turns: Sequence[str],
    answers: Sequence[str],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """The prompt for the turn after `answers`: everything said so far, then the next question."""
    asked = turns[: len(answers) + 1]
    if template == "chat":
        messages = [{"role": "user", "content": asked[0]}]
        for said, question in zip(answers, asked[1:], strict=True):
            messages += [
                {"role": "assistant", "content": said},
                {"role": "user", "content": question},
            ]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    return alpaca_conversation(asked, answers)
