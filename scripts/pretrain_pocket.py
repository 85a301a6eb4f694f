r"""Pretrain the pocket base model on procedural text and write it as a `transformers` folder.

    python scripts/pretrain_pocket.py --out subspace_lab/pocket

    python scripts/pretrain_pocket.py --out /tmp/pocket --steps 20    # a look, in seconds

The text is generated from the seed alone (`subspace_lab.tasks.pocket_text`): products, sums,
differences, comparisons, words spelt backward, letters to count, and facts about days, months and
legs. The loss is on the answers, since the questions are random. One prompt in four is never
trained on (a hash of the prompt decides) and the exact match in the folder's README is measured on
such prompts. The command runs in fp32 on the CPU: the seed fixes the data and the initial weights,
and the trained weights up to the rounding of the machine's matrix products.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from subspace_lab.tasks.pocket_text import FAMILIES, Row, rows

WORD_FREQUENCY = 1 / 2000
END = "<|endoftext|>"


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token per frequent word, per digit, and per byte of all else.

    Rare words fall apart into letters, which is what spelling and counting need, and any text
    has tokens.
    """
    split_words = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    words = Counter(word for text in texts for word, _ in split_words.pre_tokenize_str(text))
    frequent = sorted(word for word, n in words.items() if n > WORD_FREQUENCY * len(texts))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([END, *alphabet, *frequent]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split_words
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def make_model(vocabulary_size: int) -> LlamaForCausalLM:
    """Make the untrained Llama; its 3 key-value heads give it non-square projections."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def collate(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad token ids on the right; returns ids, attention mask and labels, each (batch, length)."""
    length = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    return ids, mask, labels


def encode(
    tokenizer: PreTrainedTokenizerFast, texts: list[Row]
) -> list[tuple[list[int], list[int]]]:
    """Encode prompts and responses, the end of sequence after each response."""
    prompts = tokenizer([prompt for prompt, _ in texts])["input_ids"]
    responses = tokenizer([response + END for _, response in texts])["input_ids"]
    return list(zip(prompts, responses, strict=True))


def batches(
    tokenizer: PreTrainedTokenizerFast, draw: random.Random, batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield training batches without end, every family in each."""
    stream = rows(draw, split="train")
    while True:
        yield collate(encode(tokenizer, list(islice(stream, batch_size))))


def pretrain(
    model: LlamaForCausalLM, data: Iterator[tuple[Tensor, Tensor, Tensor]], *, steps: int, lr: float
) -> None:
    """Train with AdamW: 100 steps of warm-up, then a linear decay to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1 - step / steps)
    )
    start = time.perf_counter()
    for step in range(1, steps + 1):
        ids, mask, labels = next(data)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - start
            print(f"step {step}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", flush=True)


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[Row]
) -> float:
    """Share of rows whose every response token, the end included, is the model's first choice.

    This equals the exact match of greedy generation, in one forward pass.
    """
    ids, mask, labels = collate(encode(tokenizer, texts))
    predicted = model(input_ids=ids, attention_mask=mask).logits[:, :-1].argmax(-1)
    correct = (predicted == labels[:, 1:]) | (labels[:, 1:] == -100)
    return float(correct.all(dim=1).double().mean())


README = """\
# The pocket model

A Llama of {parameters:,} parameters (hidden size 192, 4 layers, tied embeddings, fp16 weights) that
has only ever seen procedural text: short questions on numbers, letters, days and legs, generated by
`scripts/pretrain_pocket.py` from seed {seed}. It knows no language and no world. It is here so that
tests and first tries have a base model that an adapter can improve within seconds, offline.

Made by

    {command}

on the CPU in fp32 ({steps:,} steps of {batch_size} rows, loss on the answers). No text of others
went into it; it comes under this project's licence.

Exact match of greedy answers, on {evaluated} prompts of each family that were never trained on:

| family | exact match |
|---|---|
{table}
"""


def main() -> None:
    """Generate the text, train, measure, and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=2600, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    sample = rows(random.Random(f"tokenizer {options.seed}"), split="train")
    tokenizer = make_tokenizer([prompt + response for prompt, response in islice(sample, 20_000)])
    model: Any = make_model(len(tokenizer))  # typed, its `to` would take no dtype
    data = batches(tokenizer, random.Random(f"training {options.seed}"), options.batch_size)
    pretrain(model, data, steps=options.steps, lr=options.lr)

    model.train(False)
    model.to(torch.float16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    model.to(torch.float32)  # measured with the rounded weights
    table = []
    for family in FAMILIES:
        test = rows(random.Random(f"test {options.seed}"), split="test", family=family)
        table.append(f"| {family} | {exact_match(model, tokenizer, list(islice(test, 500))):.2f} |")
    text = README.format(
        parameters=model.num_parameters(),
        command=f"python {shlex.join(sys.argv)}",
        evaluated=500,
        table="\n".join(table),
        **vars(options),
    )
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
