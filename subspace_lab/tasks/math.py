r"""Math: GSM8K, MATH, and MetaMathQA to train on (Yu et al., 2023).

Every response ends with "The answer is: X", as MetaMathQA's do, and the scorer compares what
follows the last such marker on its line (see `score`).

With a data folder: `math/{gsm8k,math,metamathqa}_{train,test}.jsonl`, with the hub sets' fields.
"""

from __future__ import annotations

import re
from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.tasks.answers import equal, first_number_equal
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca_math
from subspace_lab.tasks.sources import HubSet, StoredExample, read

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
CALCULATION = re.compile(r"<<[^>]*>>")


def load(name: str, split: str, *, data_dir: str | Path | None = None) -> list[Example]:
    """Load the "train" or "test" examples of a set.

    Raises:
        UserError: if data is missing or malformed, or the set has no such split.
    """
    if name == "metamathqa" and split == "test":
        raise UserError("metamathqa has no test split: evaluate on gsm8k or math")
    file = f"math/{name}_{split}.jsonl"
    if name == "gsm8k":
        return [_gsm8k(stored) for stored in read(file, GSM8K, split=split, data_dir=data_dir)]
    if name == "metamathqa":
        examples = read(file, METAMATHQA, split=split, data_dir=data_dir)
        return [_metamathqa(stored) for stored in examples]
    subjects = MATH if data_dir is None else MATH[:1]  # one file holds all subjects
    return [
        _math(stored)
        for subject in subjects
        for stored in read(file, subject, split=split, data_dir=data_dir)
    ]


def score(example: Example, generated_text: str) -> float:
    r"""Give 1.0 if what follows the last "The answer is:" is the answer, else 0.0.

    Answers are compared as numbers or as mathematics (see `answers.equal`). In GSM8K, whose answers
    are numbers, the wording around a number does not matter: as in MetaMath's scorer
    (eval_gsm8k.py of Yu et al., 2023) the first number after the marker counts, as in "18 dollars",
    "**18**" or "about 18". Unlike there, an expression is compared as mathematics (that scorer
    reads 18 + 2 = 20 as 18), 1,234,567 is one number (there 1,234), and nothing is rounded (there
    17.6 counts as 18).

    >>> example = Example("gsm8k", "...", "...", "1234567")
    >>> [score(example, text) for text in ("The answer is: 1,234,567.", "The answer is: 1,234")]
    [1.0, 0.0]
    >>> score(example, "The answer is: $1,234,567 a year"), score(example, "1234567")  # no marker
    (1.0, 0.0)
    """
    answer, truth = final_answer(generated_text), example.answer
    if answer is None:
        return 0.0
    in_words = _of_gsm8k(example) and first_number_equal(answer, truth)
    return float(in_words or equal(answer, truth))


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


def _of_gsm8k(example: Example) -> bool:
    """Tell whether a question is GSM8K's; MetaMathQA says which set each was made from."""
    return example.task == "gsm8k" or str(example.metadata.get("type")).startswith("GSM")


def _gsm8k(stored: StoredExample) -> Example:
    question, solution = stored.text("question"), stored.text("answer")
    steps, marker, answer = solution.rpartition("\n#### ")
    if not marker:
        raise stored.error("has an answer without '#### ' before the final number")
    answer = answer.strip().replace(",", "")
    steps = CALCULATION.sub("", steps)
    return Example("gsm8k", alpaca_math(question), f" {steps}\nThe answer is: {answer}", answer)


def _metamathqa(stored: StoredExample) -> Example:
    question, response = stored.text("query"), stored.text("response")
    answer = final_answer(response)
    if answer is None:
        raise stored.error("has a response without 'The answer is:'")
    metadata = {"type": stored.text("type")}
    return Example("metamathqa", alpaca_math(question), f" {response}", answer, metadata=metadata)


def _math(stored: StoredExample) -> Example:
    problem, solution = stored.text("problem"), stored.text("solution")
    answer = last_boxed(solution)
    if answer is None:
        raise stored.error(r"has a solution without \boxed{...}")
    metadata = {"type": stored.text("type"), "level": stored.text("level")}
    response = f" {solution}\nThe answer is: {answer}"
    return Example("math", alpaca_math(problem), response, answer, metadata=metadata)
