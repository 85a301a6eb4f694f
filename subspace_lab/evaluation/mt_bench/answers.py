"""A model's answers to both turns of the MT-Bench questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from subspace_lab.evaluation.generation import generate
from subspace_lab.evaluation.mt_bench.questions import TURNS, Question
from subspace_lab.recording import files
from subspace_lab.tasks.prompts import alpaca

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
) -> dict[int, tuple[str, ...]]:
    """Answer the first turn of all questions, then the second after the model's own first.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        questions: From `load_material`.
        template: `alpaca` for adapters trained with the Alpaca template, `chat` for the
            tokenizer's own chat template.
        max_new_tokens: Of one answer; FastChat's limit is 1024.
        batch_size: Questions answered at a time.

    Returns:
        The answers to both turns, by `question_id`.
    """
    answers: list[tuple[str, ...]] = [() for _ in questions]
    for _ in range(TURNS):
        prompts = [
            conversation(question.turns, given, template=template, tokenizer=tokenizer)
            for question, given in zip(questions, answers, strict=True)
        ]
        texts = generate(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        answers = [(*given, text.strip()) for given, text in zip(answers, texts, strict=True)]
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
    text = alpaca(asked[0])
    for said, question in zip(answers, asked[1:], strict=True):
        text += f"{said}\n\n### Instruction:\n{question}\n\n### Response:\n"
    return text


def write_answers(path: Path, answers: Answers) -> None:
    """Keep the answers in a JSON file, so that judging can go on another day."""
    files.write_json(
        path, {str(question_id): list(given) for question_id, given in answers.items()}
    )


def read_answers(path: Path) -> dict[int, tuple[str, ...]]:
    """Read the answers that `write_answers` kept."""
    return {int(question_id): tuple(given) for question_id, given in files.read_json(path).items()}
