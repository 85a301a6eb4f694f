"""A tiny Llama whose tokens are single printable characters, so that any tokens are a text."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
END = "</s>"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; the pad token is the end of sequence, as in SmolLM2."""
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    backend = Tokenizer(models.WordLevel({**vocabulary, END: len(vocabulary)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Large random weights in float64: every prompt has a continuation of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def greedy_text(model, tokenizer) -> Callable[..., str]:
    """Brute-force twin of generation: the whole sequence anew for every token, no batch."""

    @torch.no_grad()
    def continued(prompt: str, *, tokens: int) -> str:
        ids = tokenizer(prompt)["input_ids"]
        for _ in range(tokens):
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
        return tokenizer.decode(ids)[len(prompt) :]

    return continued
