from __future__ import annotations

from subspace_lab.tasks import prompts


def test_the_alpaca_template_to_the_letter() -> None:
    assert prompts.alpaca("Add 1 and 2.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd 1 and 2.\n\n### Response:\n"
    )


def test_the_math_template_ends_with_the_request_to_think() -> None:
    assert prompts.alpaca_math("{x}") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{x}\n\n"
        "### Response: Let's think step by step."
    )


def test_the_template_is_not_applied_twice() -> None:
    stored = prompts.alpaca("Is it so?\n\nAnswer format: true/false")
    assert prompts.alpaca_instruction(stored) == "Is it so?\n\nAnswer format: true/false"
    assert prompts.alpaca_instruction(stored.strip()) == prompts.alpaca_instruction(stored)
