from __future__ import annotations

import numpy as np
import pytest
import torch

from subspace_lab.calibration import Calibration
from subspace_lab.errors import UserError
from subspace_lab.evaluation import likelihood
from subspace_lab.evaluation.generation import generate
from subspace_lab.tasks import Example

PAIRS = [("12 + 30 = ", "42"), ("a", "bcdefg hij"), ("Which?\nAnswer:", " 9"), ("? !", "x\ny")]


@torch.no_grad()
def brute_force_nats(model, tokenizer, prompt: str, response: str, *, with_eos: bool) -> float:
    prefix = tokenizer(prompt)["input_ids"]
    tokens = tokenizer(response)["input_ids"] + [tokenizer.eos_token_id] * with_eos
    log_p = model(torch.tensor([prefix + tokens])).logits[0].log_softmax(dim=-1)
    return -sum(float(log_p[len(prefix) - 1 + t, token]) for t, token in enumerate(tokens))


@pytest.mark.parametrize("with_eos", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_scores_equal_single_unpadded_passes(model, tokenizer, batch_size, with_eos) -> None:
    scores = likelihood.score_responses(
        model, tokenizer, PAIRS, batch_size=batch_size, with_eos=with_eos
    )
    for score, (prompt, response) in zip(scores, PAIRS, strict=True):
        expected = brute_force_nats(model, tokenizer, prompt, response, with_eos=with_eos)
        np.testing.assert_allclose(score.nats, expected, rtol=1e-12)
        assert score.tokens == len(response) + with_eos


def test_a_pair_beyond_the_context_is_refused(model, tokenizer) -> None:
    with pytest.raises(UserError, match=r"261 tokens and do not fit into .* context of 256"):
        likelihood.score_responses(model, tokenizer, [("a" * 250, "b" * 10), ("a", "b")])


def examples(pairs, choices=()) -> list[Example]:
    return [Example("demo", prompt, response, response, choices) for prompt, response in pairs]


def test_exact_match_is_greedy_generation_reproducing_the_response(
    model, tokenizer, greedy_text
) -> None:
    prompts = ["12 + 30 = ", "a", "Which?\nAnswer:", "? !"]
    greedy = [greedy_text(prompt, tokens=6) for prompt in prompts]
    wrong = [text[:3] + ("#" if text[3] != "#" else "%") + text[4:] for text in greedy]
    rows = examples([*zip(prompts, greedy, strict=True), *zip(prompts, wrong, strict=True)])

    records = likelihood.exact_match(model, tokenizer, rows, batch_size=3, with_eos=False)

    generated = generate(model, tokenizer, [row.prompt for row in rows], max_new_tokens=6)
    assert records["correct"].tolist() == [
        text == row.response for text, row in zip(generated, rows, strict=True)
    ]
    assert records["correct"].tolist() == [True] * 4 + [False] * 4
    assert records["prediction"].tolist() == greedy + [text[:4] for text in greedy]


def test_exact_match_with_end_of_sequence_wants_the_model_to_stop_there(
    model, tokenizer, greedy_text
) -> None:
    whole = greedy_text("a", tokens=10)
    end = next(character for character in whole[2:] if character not in whole[:2])
    tokenizer.eos_token = end
    response = whole[: whole.index(end)]
    rows = examples([("a", response), ("a", response[:-1])])
    records = likelihood.exact_match(model, tokenizer, rows)
    assert records["correct"].tolist() == [True, False]
    assert generate(model, tokenizer, ["a"], max_new_tokens=10) == [response]


@pytest.mark.parametrize("normalization", ["sum", "mean"])
def test_choices_are_picked_by_the_named_normalization(
    model, tokenizer, normalization, monkeypatch
) -> None:
    monkeypatch.setattr(likelihood.tasks, "score", lambda example, text: text == example.answer)
    choices = ("x", "answer1", "a long and unlikely choice", "42")
    rows = examples([("12 + 30 = ", "42"), ("a", "x"), ("?", "answer1")], choices)

    records = likelihood.choose(model, tokenizer, rows, normalization=normalization, batch_size=5)

    for row, picked in zip(rows, records.itertuples(), strict=True):
        costs = {}
        for choice in choices:
            nats = brute_force_nats(model, tokenizer, row.prompt, choice, with_eos=True)
            costs[choice] = nats if normalization == "sum" else nats / (len(choice) + 1)
        assert picked.prediction == min(costs, key=costs.__getitem__)
        assert picked.correct == (picked.prediction == row.answer)


def test_the_two_normalizations_can_disagree(model, tokenizer, greedy_text, monkeypatch) -> None:
    """One certain long choice against one short: the sum takes the short, the mean the long."""
    monkeypatch.setattr(likelihood.tasks, "score", lambda example, text: 1.0)
    long = greedy_text("a", tokens=30)
    rows = examples([("a", "x")], ("#", long))
    picked = {
        kind: likelihood.choose(
            model, tokenizer, rows, normalization=kind, with_eos=False
        ).prediction.item()
        for kind in ("sum", "mean")
    }
    assert picked == {"sum": "#", "mean": long}


def test_choosing_needs_choices(model, tokenizer) -> None:
    with pytest.raises(UserError, match="not multiple choice"):
        likelihood.choose(model, tokenizer, examples(PAIRS))


def test_response_loss_weighs_tokens_and_examples_as_it_says(model, tokenizer) -> None:
    nats = [brute_force_nats(model, tokenizer, *pair, with_eos=True) for pair in PAIRS]
    tokens = sum(len(response) + 1 for _, response in PAIRS)
    loss = likelihood.response_loss(model, tokenizer, examples(PAIRS))
    np.testing.assert_allclose(loss.per_token, sum(nats) / tokens, rtol=1e-12)
    np.testing.assert_allclose(loss.per_example, sum(nats) / len(PAIRS), rtol=1e-12)
    assert (loss.tokens, loss.examples) == (tokens, len(PAIRS))


def test_response_tokens_and_choices_are_calibrated(model, tokenizer, monkeypatch) -> None:
    rows = examples(PAIRS)
    tokens = Calibration()
    likelihood.exact_match(model, tokenizer, rows, batch_size=3, calibration=tokens)
    squares, nats, confident = 0.0, 0.0, 0.0
    for prompt, response in PAIRS:
        prefix = tokenizer(prompt)["input_ids"]
        ids = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prefix + ids])).logits[0, len(prefix) - 1 : -1]
        p = logits.double().softmax(-1)
        squares += float((p - torch.eye(p.shape[-1])[ids]).square().sum())
        confident += float(p.amax(-1).sum())
        nats += float(-(logits.double() / 8).log_softmax(-1)[range(len(ids)), ids].sum())
    count = sum(len(response) + 1 for _, response in PAIRS)
    assert tokens.summary()["brier"] == pytest.approx(squares / count)
    assert float(tokens.reliability.bins[:, 1].sum()) == pytest.approx(confident)
    assert float(tokens.nats[-1]) == pytest.approx(nats)

    monkeypatch.setattr(likelihood.tasks, "score", lambda example, text: text == example.answer)
    several = [
        Example("demo", "Which?\nAnswer:", "", "42", ("x", "answer1", "42")),
        Example("demo", "a", "", "b", ("b", "c")),
        Example("demo", "a", "", "nowhere", ("b", "c")),  # nothing says which is right
    ]
    choices = Calibration()
    likelihood.choose(model, tokenizer, several, calibration=choices)
    expected = 0.0
    for example in several[:2]:
        each = [
            brute_force_nats(model, tokenizer, example.prompt, choice, with_eos=True)
            for choice in example.choices
        ]
        p = torch.tensor(each).neg().softmax(-1)
        right = torch.tensor([choice == example.answer for choice in example.choices])
        expected += float((p - right.double()).square().sum())
    assert choices.summary()["brier"] == pytest.approx(expected / 2)
    assert float(choices.reliability.bins[:, 0].sum()) == 2
    assert Calibration().summary() == {}
