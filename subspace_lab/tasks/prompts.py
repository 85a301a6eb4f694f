"""The prompt templates, one place for training and evaluation alike.

The commonsense, math, code and conversation sets take the Alpaca template without input
(Taori et al., 2023), as LLM-Adapters (Hu et al., 2023) and MetaMath (Yu et al., 2023) do.
The built-in tasks take a short one, so that their examples stay within a few dozen tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
STEP_BY_STEP = " Let's think step by step."


def alpaca(instruction: str) -> str:
    r"""Put an instruction into the Alpaca template; the response starts on a new line.

    >>> alpaca("Add 1 and 2.")[-34:]
    'tion:\nAdd 1 and 2.\n\n### Response:\n'
    """
    return ALPACA.format(instruction=instruction) + "\n"


def alpaca_conversation(questions: Sequence[str], answers: Sequence[str]) -> str:
    """Put a conversation into the Alpaca template, up to the last question, which has no answer."""
    text = alpaca(questions[0])
    for answer, question in zip(answers, questions[1:], strict=True):
        text += f"{answer}\n\n### Instruction:\n{question}\n\n### Response:\n"
    return text


def alpaca_math(instruction: str) -> str:
    r"""Put a math question into the Alpaca template, ending in "Let's think step by step.".

    >>> alpaca_math("Add 1 and 2.")[-39:]
    "### Response: Let's think step by step."
    """
    return ALPACA.format(instruction=instruction) + STEP_BY_STEP


def plain(question: str) -> str:
    r"""Put a question of the built-in tasks into its short template.

    >>> plain("What is 1 + 2?")
    'What is 1 + 2?\nAnswer:'
    """
    return f"{question}\nAnswer:"


def alpaca_instruction(text: str) -> str:
    r"""Take the instruction out of a text in the Alpaca template; other texts stay as they are.

    Some published sets store the template with each example.

    >>> alpaca_instruction(alpaca("Add 1 and 2.")), alpaca_instruction("Add 1 and 2.")
    ('Add 1 and 2.', 'Add 1 and 2.')
    """
    before, after = ALPACA.split("{instruction}")
    return text.strip().removeprefix(before).removesuffix(after.rstrip())
