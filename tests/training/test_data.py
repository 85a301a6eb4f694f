"""The collator: the loss of a batch with only the logits that it needs."""

from __future__ import annotations

import pytest
import torch

from subspace_lab import models, tasks
from subspace_lab.training.data import IGNORED, RightPadding, response_statistics, tokenize


@pytest.mark.parametrize("rows", [(0, 1, 2), (3,), (4, 0)])
@torch.no_grad()
def test_a_batch_has_the_loss_of_all_its_logits(rows: tuple[int, ...]) -> None:
    base = models.find_base("pocket")
    tokenizer = models.load_tokenizer(base)
    model = models.load_model(base).double().eval()
    examples = tasks.load("pocket", "train", size=4)
    tokenized = tokenize(examples, tokenizer, max_length=256)
    tokenized.append({"input_ids": [5, 6, 7], "labels": [5, 6, 7]})  # no prompt at all
    chosen = [tokenized[row] for row in rows]

    batch = RightPadding(int(tokenizer.pad_token_id))(chosen)
    found = model(**batch)
    losses, tokens = 0.0, 0
    for row in chosen:
        inputs, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        log_probs = model(input_ids=inputs).logits[0].log_softmax(-1)
        for place in range(1, len(labels)):
            if labels[place] != IGNORED:
                losses -= float(log_probs[place - 1, labels[place]])
                tokens += 1
    assert found.logits.shape[1] == batch["logits_to_keep"] <= batch["input_ids"].shape[1]
    torch.testing.assert_close(float(found.loss), losses / tokens, rtol=1e-6, atol=0)
    statistics = response_statistics(found.logits, batch["labels"])
    torch.testing.assert_close(float(statistics[:, 0].sum()), losses, rtol=1e-5, atol=0)
    assert int(statistics[:, 1].sum()) == tokens
