from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import subspace_lab
from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation.generation import generate

POCKET = Path(subspace_lab.__file__).parent / "pocket"
PROMPTS = ["12 + 30 = ", "a", "Which is larger, 7 or 9?\nAnswer:", "xyz xyz", "? ! ?", "Q: (3)"]


def test_generation_equals_the_brute_force_twin_at_every_batch_size(
    model, tokenizer, greedy_text
) -> None:
    expected = [greedy_text(prompt, tokens=12) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    for batch_size in (1, 2, 4, 6):
        texts = generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size)
        assert texts == expected


def test_generation_in_float32_does_not_depend_on_the_batch_size(model, tokenizer) -> None:
    one = generate(model.float(), tokenizer, PROMPTS, max_new_tokens=8, batch_size=1)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=6) == one


def test_generation_ends_at_any_of_the_models_end_tokens(model, tokenizer, greedy_text) -> None:
    whole = greedy_text("a", tokens=10)
    stop = next(character for character in whole[2:] if character not in whole[:2])
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(stop),
    ]
    (text,) = generate(model, tokenizer, ["a"], max_new_tokens=10)
    assert text == whole[: whole.index(stop)]


def test_generation_is_greedy_whatever_the_models_own_settings(model, tokenizer) -> None:
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 3.0
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=12) == expected


def test_the_model_is_given_back_in_the_mode_it_came_in(model, tokenizer) -> None:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=4)
    model.train()
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=4) == expected
    assert model.training
    assert torch.is_grad_enabled()


def test_a_prompt_beyond_the_context_is_refused(model, tokenizer) -> None:
    with pytest.raises(UserError, match="context of 256 tokens"):
        generate(model, tokenizer, ["a" * 250], max_new_tokens=7)


def test_no_prompts_give_no_texts(model, tokenizer) -> None:
    assert generate(model, tokenizer, [], max_new_tokens=4) == []


@pytest.mark.skipif(not POCKET.is_dir(), reason="the pocket model is not in this checkout")
def test_the_pocket_model_answers_the_same_at_every_batch_size() -> None:
    pocket, tokenizer = (
        AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32),
        (AutoTokenizer.from_pretrained(POCKET)),
    )
    prompts = [row.prompt for row in tasks.load("pocket", "test", size=12, seed=0)]
    one = generate(pocket, tokenizer, prompts, max_new_tokens=12, batch_size=1)
    assert generate(pocket, tokenizer, prompts, max_new_tokens=12, batch_size=5) == one
