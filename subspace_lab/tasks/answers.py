"""When is an answer the true one? As a number in a phrase, or as mathematics.

With math-verify (the extra `evaluation`) answers are compared as mathematics, so 1/2 equals 0.5;
without it, as numbers or, failing that, as text.
"""

from __future__ import annotations

import importlib.util
import re
from decimal import Decimal

from subspace_lab.tasks.expressions import equal_expressions

NUMBER = re.compile(r"[-+]?((\d{1,3}(,\d{3})+|\d+)(\.\d*)?|\.\d+)([eE][-+]?\d{1,9})?")
OPERATION = re.compile(r"\\|\d\s*[-+*/^=_]\s*[-+.\d]")
"""What makes a text an expression: a command of LaTeX, or a sign between two numbers."""


def same_text(text: str, answer: str) -> bool:
    r"""Tell whether a text is the answer: its first line, for an answer of one line.

    >>> same_text(" 3\nWhat is", "3"), same_text("a\nb ", "a\nb"), same_text("33", "3")
    (True, True, False)
    """
    text = text.strip()
    return (text if "\n" in answer else text.split("\n")[0].strip()) == answer


def equal(answer: str, truth: str) -> bool:
    """Tell whether two answers are the same number or expression.

    >>> equal("$1,234,567", "1234567"), equal("17.6", "18"), equal("18.0", "18")
    (True, False, True)
    """
    number, true_number = _number(answer), _number(truth)
    if number is not None and true_number is not None:
        return number == true_number
    if importlib.util.find_spec("math_verify") is None:
        return answer.replace(" ", "") == truth.replace(" ", "")
    return equal_expressions(answer, truth)


def first_number_equal(phrase: str, truth: str) -> bool:
    """Tell whether the first number in a phrase is the true number. Expressions are not phrases.

    >>> [first_number_equal(text, "18") for text in ("**$18** a year", "18 + 2 = 20", "eighteen")]
    [True, False, False]
    """
    plain = phrase.replace(r"\$", "").replace("$", "").replace("**", "")
    first, true_number = NUMBER.search(plain), _number(truth)
    if first is None or true_number is None or OPERATION.search(plain):
        return False
    return _decimal(first.group()) == true_number


def _number(text: str) -> Decimal | None:
    """Read a plain number, thousands in commas and a currency or per cent sign allowed.

    Decimal itself would read 1,2 (a list) without its comma as 12, 25_8 (base eight) as 258.
    """
    plain = text.strip().strip("$%")
    return _decimal(plain) if NUMBER.fullmatch(plain) else None


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
