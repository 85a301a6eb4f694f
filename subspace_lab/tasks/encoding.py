"""How prompts and responses become tokens when a model is evaluated, and tokens text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokens of the prompt, with the special tokens that the tokenizer puts in front.

    A prompt made by a chat template may write the beginning-of-sequence token itself; it is then
    not added a second time.
    """
    begins = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return list(tokenizer(prompt, add_special_tokens=not begins)["input_ids"])


def encode_response(
    tokenizer: PreTrainedTokenizerBase, response: str, *, with_eos: bool
) -> list[int]:
    """Tokens of the response alone, encoded apart from the prompt, and its end if `with_eos`."""
    tokens = list(tokenizer(response, add_special_tokens=False)["input_ids"])
    return [*tokens, tokenizer.eos_token_id] if with_eos else tokens


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Text of the tokens, without special ones and with every space as it was written."""
    return str(
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
