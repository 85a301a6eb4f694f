"""The short problems that x7-short trains on."""

from __future__ import annotations

from experiments.short_gsm8k import short_problems
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca_math


class Letters:
    """A tokenizer with a token for each character."""

    bos_token = None
    eos_token_id = 0

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_problems_are_chosen_by_the_tokens_of_prompt_solution_and_end_in_the_short_template():
    examples = [
        Example("gsm8k", alpaca_math(question), " 3\nThe answer is: 3", "3")
        for question in ("What is 1 + 2?", "What, then, is 1 + 2?")
    ]
    short = {"prompt": "What is 1 + 2?\nAnswer:", "response": " 3\nThe answer is: 3"}
    tokens = len(short["prompt"]) + len(short["response"]) + 1
    assert short_problems(examples, Letters(), most=tokens) == [short]
    assert short_problems(examples, Letters(), most=tokens - 1) == []
    assert len(short_problems(examples, Letters())) == 2
