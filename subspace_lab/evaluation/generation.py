"""Greedy generation in batches, with answers that do not depend on the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from subspace_lab.errors import UserError
from subspace_lab.evaluation.batching import evaluation_mode, padded_batches
from subspace_lab.models import context_length
from subspace_lab.tasks.encoding import decode, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Explicit, because what is not set is filled in from the model's own generation_config,
# where many chat models keep a sampling temperature or a repetition penalty.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": None,
    "top_p": None,
    "top_k": None,
}


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Continue each prompt greedily, up to an end-of-sequence token or `max_new_tokens`.

    Prompts are padded on the left and attended to by an explicit mask, from which
    `transformers` counts the positions, so each is computed as if it were alone.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: What to continue.
        max_new_tokens: Of one continuation.
        batch_size: Prompts continued at a time.
        on_text: Called with the index and continuation of each prompt as soon as its batch is done.

    Returns:
        The continuations, without the prompt and special tokens, in the order of `prompts`.

    Raises:
        UserError: if a prompt and its continuation do not fit into the model's context.
    """
    progress = tqdm(prompts, desc="tokenizing", delay=1, disable=None)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in progress]
    longest = max(map(len, encoded), default=0)
    if (context := context_length(model)) is not None and longest + max_new_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit into this "
            f"model's context of {context} tokens: lower `max_new_tokens`, or exclude the longest "
            "prompts"
        )
    stops = stop_ids(model, tokenizer)
    texts = [""] * len(encoded)
    with evaluation_mode(model):
        for batch in padded_batches(
            encoded,
            batch_size=batch_size,
            side="left",
            device=model.device,
            description="generating",
        ):
            output = model.generate(  # type: ignore[operator]
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                eos_token_id=stops or None,
                pad_token_id=stops[0] if stops else 0,
                **GREEDY,
            )
            continuations = output[:, batch.input_ids.shape[1] :].tolist()
            for index, continuation in zip(batch.indices, continuations, strict=True):
                texts[index] = decode(tokenizer, _until_stop(continuation, stops))
                if on_text is not None:
                    on_text(index, texts[index])
    return texts


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of sequence, then those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in [tokenizer.eos_token_id, *listed] if i is not None))


def _until_stop(tokens: list[int], stops: list[int]) -> list[int]:
    end = next((position for position, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
