"""The judge: any model behind an OpenAI-compatible endpoint, asked for a score from 1 to 10."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from subspace_lab.errors import UserError
from subspace_lab.evaluation.mt_bench.questions import Material, Question

if TYPE_CHECKING:
    from openai import OpenAI

RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
RATING_IN_SINGLE_BRACKETS = re.compile(r"\[(\d+\.?\d*)\]")
LOWEST, HIGHEST = 1.0, 10.0
HIDDEN_PART = 6  # characters: a server may repeat a key in part

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
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is not JSON
            reason = without_key(str(error), os.environ.get("OPENAI_API_KEY", ""))
            raise UserError(
                f"the judge {self.model} at {self._address} does not answer "
                f"({type(error).__name__}: {reason})"
            ) from None  # a traceback would show the server's text as it came
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise UserError(
                f"{self._address} is not an OpenAI-compatible endpoint: check the address"
            )
        return completion.choices[0].message.content or ""

    @property
    def _address(self) -> str:
        """Where the judge is, without a user name, password or query that may hold a key."""
        if self.base_url is None:
            return "OpenAI"
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

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


def without_key(text: str, key: str) -> str:
    """The text with the key, and every part of it of `HIDDEN_PART` characters or more, as ***.

    >>> without_key("Incorrect API key: sk-12345678", "sk-12345678")
    'Incorrect API key: ***'
    >>> without_key("no account for sk-12345...", "sk-12345678")
    'no account for ***...'
    """
    shortest = max(1, min(HIDDEN_PART, len(key)))
    shown, start = [], 0
    while start < len(text):
        end = start
        while end < len(text) and text[start : end + 1] in key:
            end += 1
        hidden = end - start >= shortest
        shown.append("***" if hidden else text[start])
        start = end if hidden else start + 1
    return "".join(shown)
