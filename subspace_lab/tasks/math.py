r"""Math: GSM8K, MATH, and MetaMathQA to train on (Yu et al., 2023).

Every response ends with "The answer is: X", as MetaMathQA's do, and the scorer compares what
follows the last such marker. With math-verify (the extra `evaluation`) answers are compared as
mathematics, so 1/2 equals 0.5; without it, as numbers or, failing that, as text.

With a data folder: `math/{gsm8k,math,metamathqa}_{train,test}.jsonl`, with the hub sets' fields.
"""

from __future__ import annotations

import importlib.util
import re
from decimal import Decimal
from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca_math
from subspace_lab.tasks.sources import HubSet, Row, read

NAMES = ("gsm8k", "math", "metamathqa")

GSM8K = HubSet("openai/gsm8k", config="main")
METAMATHQA = HubSet("meta-math/MetaMathQA")
MATH = tuple(
    HubSet("EleutherAI/hendrycks_math", config=subject)
    for subject in (
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    )
)

MARKER = re.compile(r"The answer is:?")
NUMBER = re.compile(r"[-+]?((\d{1,3}(,\d{3})+|\d+)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
CALCULATION = re.compile(r"<<[^>]*>>")


def load(name: str, split: str, *, data_dir: str | Path | None = None) -> list[Example]:
    """Load the "train" or "test" rows of a set.

    Raises:
        UserError: if data is missing or malformed, or the set has no such split.
    """
    if name == "metamathqa" and split == "test":
        raise UserError("metamathqa has no test split: evaluate on gsm8k or math")
    file = f"math/{name}_{split}.jsonl"
    if name == "gsm8k":
        return [_gsm8k(row) for row in read(file, GSM8K, split=split, data_dir=data_dir)]
    if name == "metamathqa":
        return [_metamathqa(row) for row in read(file, METAMATHQA, split=split, data_dir=data_dir)]
    subjects = MATH if data_dir is None else MATH[:1]  # one file holds all subjects
    return [
        _math(row)
        for subject in subjects
        for row in read(file, subject, split=split, data_dir=data_dir)
    ]


def score(example: Example, generated_text: str) -> float:
    r"""Give 1.0 if what follows the last "The answer is:" equals the answer, else 0.0.

    >>> row = Example("gsm8k", "...", "...", "1234567")
    >>> score(row, "So ... The answer is: 1,234,567."), score(row, "The answer is: 1,234")
    (1.0, 0.0)
    >>> score(row, "1234567")  # no marker
    0.0
    """
    answer = final_answer(generated_text)
    return float(answer is not None and equal(answer, example.answer))


def final_answer(text: str) -> str | None:
    r"""Give what follows the last marker on its line, without the final stop; None: no marker.

    >>> final_answer("The answer is: 17.6.\nThat is all.")
    '17.6'
    """
    markers = list(MARKER.finditer(text))
    if not markers:
        return None
    lines = text[markers[-1].end() :].strip().splitlines()
    return lines[0].strip().removesuffix(".") if lines else None


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
    from math_verify import parse, verify

    return bool(verify(parse(f"${truth}$"), parse(f"${answer}$")))


def last_boxed(solution: str) -> str | None:
    r"""Give the content of the last \boxed{...}, braces matched; None if there is none.

    >>> print(last_boxed(r"so $x = \boxed{\frac{1}{2}}$."))
    \frac{1}{2}
    """
    start = solution.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for position in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[position], 0)
        if depth == 0:
            return solution[start:position]
    return None


def _number(text: str) -> Decimal | None:
    """Read a plain number, thousands in commas and a currency or per cent sign allowed.

    Decimal itself would read 1,2 (a list) without its comma as 12, 25_8 (base eight) as 258.
    """
    plain = text.strip().strip("$%")
    return Decimal(plain.replace(",", "")) if NUMBER.fullmatch(plain) else None


def _gsm8k(row: Row) -> Example:
    question, solution = row.text("question"), row.text("answer")
    steps, marker, answer = solution.rpartition("\n#### ")
    if not marker:
        raise row.error("has an answer without '#### ' before the final number")
    answer = answer.strip().replace(",", "")
    steps = CALCULATION.sub("", steps)
    return Example("gsm8k", alpaca_math(question), f" {steps}\nThe answer is: {answer}", answer)


def _metamathqa(row: Row) -> Example:
    question, response = row.text("query"), row.text("response")
    answer = final_answer(response)
    if answer is None:
        raise row.error("has a response without 'The answer is:'")
    metadata = {"type": row.text("type")}
    return Example("metamathqa", alpaca_math(question), f" {response}", answer, metadata=metadata)


def _math(row: Row) -> Example:
    problem, solution = row.text("problem"), row.text("solution")
    answer = last_boxed(solution)
    if answer is None:
        raise row.error(r"has a solution without \boxed{...}")
    metadata = {"type": row.text("type"), "level": row.text("level")}
    response = f" {solution}\nThe answer is: {answer}"
    return Example("math", alpaca_math(problem), response, answer, metadata=metadata)
