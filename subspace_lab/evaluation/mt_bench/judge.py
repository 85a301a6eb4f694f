"""The judge: any model behind an OpenAI-compatible endpoint, asked for a score from 1 to 10."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from subspace_lab.errors import UserError
from subspace_lab.evaluation.mt_bench.questions import Material, Question

if TYPE_CHECKING:
    from openai import OpenAI

RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_IN_SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*)\]")
LOWEST, HIGHEST = 1.0, 10.0

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Judge:
    """A judging model and how to ask it.

    The key is read from the environment (OPENAI_API_KEY), never given here: a server that wants
    none still needs the variable to hold some word.
    """

    model: str
    base_url: str | None = None  # None: OpenAI's own
    options: Mapping[str, Any] = field(  # FastChat's; passed to chat.completions.create
        default_factory=lambda: {"temperature": 0, "max_tokens": 2048}
    )
    attempts: int = 3  # askings until a reply holds a score
    max_retries: int = 6  # of one asking, with growing pauses, when the server fails or is busy
    timeout: float = 120.0  # seconds for one reply

    def ask(self, messages: Messages) -> str:
        """The judge's reply, empty if it says nothing.

        Raises:
            UserError: if it does not answer, after the retries.
        """
        import openai
        from openai.types.chat import ChatCompletion

        try:
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                **self.options,
            )
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise UserError(
                f"the judge {self.model} at {self.base_url or 'OpenAI'} does not answer "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise UserError(f"{self.base_url} is no OpenAI-compatible endpoint: check the address")
        return completion.choices[0].message.content or ""

    @cached_property
    def _client(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(base_url=self.base_url, max_retries=self.max_retries, timeout=self.timeout)


def judge_messages(
    material: Material, question: Question, answers: Sequence[str], *, turn: int
) -> Messages:
    """What the judge is asked about the answer in turn 1 or 2.

    The second turn is judged with the whole conversation in view; questions that have reference
    answers are judged against them.
    """
    prompt = material.judge_prompt(question, turn)
    fields = {
        "question": question.turns[0],
        "question_1": question.turns[0],
        "question_2": question.turns[1],
        "answer": answers[0],
        "answer_1": answers[0],
        "answer_2": answers[1],
    }
    if question.references:
        fields |= dict(zip(("ref_answer_1", "ref_answer_2"), question.references, strict=True))
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": prompt.template.format(**fields)},
    ]


def parse_score(reply: str) -> float | None:
    """The first [[n]] of a reply, else its first [n]; None unless 1 <= n <= 10.

    >>> parse_score("Clear and correct, as in [2]. Rating: [[8.5]]")
    8.5
    >>> parse_score("Rating: [7]")
    7.0
    >>> parse_score("I would say eight.") is parse_score("[[80]]") is None
    True
    """
    match = RATING.search(reply) or RATING_IN_SINGLE_BRACKETS.search(reply)
    if match is None:
        return None
    score = float(match[1])
    return score if LOWEST <= score <= HIGHEST else None
