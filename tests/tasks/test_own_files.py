"""Examples of one's own, single generators, and the flip task."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.tasks.prompts import alpaca


def write(path: Path, *examples: object) -> str:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return str(path)


def test_a_file_is_split_by_a_hash_of_the_prompt(tmp_path) -> None:
    own = [{"prompt": f"Größe {i}:", "response": f" {i}"} for i in range(400)]
    name = write(tmp_path / "mine.jsonl", *own)
    splits = {s: tasks.load(name, s) for s in ("train", "validation", "test", "train+validation")}
    prompts = {split: {e.prompt for e in examples} for split, examples in splits.items()}
    assert prompts["train"] | prompts["validation"] == prompts["train+validation"]
    assert prompts["train+validation"] | prompts["test"] == {e["prompt"] for e in own}
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["train+validation"] & prompts["test"]
    assert 270 < len(splits["train"]) < 330 and 60 < len(splits["test"]) < 100
    shuffled = write(tmp_path / "other.jsonl", *reversed(own))
    assert {e.prompt for e in tasks.load(shuffled, "test")} == prompts["test"]
    assert tasks.load("mine.jsonl", "test", data_dir=tmp_path)[0].prompt in prompts["test"]
    example = splits["test"][0]
    assert tasks.score(example, example.response + "\n") == 1.0
    assert tasks.score(example, example.response + "0") == 0.0


def test_noise_is_for_training_examples_only(tmp_path) -> None:
    own = [{"prompt": f"{i}:", "response": f" {i}"} for i in range(200)]
    name = write(tmp_path / "mine.jsonl", *own)
    noisy = tasks.load(name, "train", label_noise=0.5)
    wrong = sum(e.response.strip() != e.answer for e in noisy)
    assert wrong == round(0.5 * len(noisy))
    assert tasks.load(name, "test", label_noise=0.5) == tasks.load(name, "test")


def test_messages_become_a_conversation(tmp_path) -> None:
    turns = [("system", "Be brief."), ("user", "A?"), ("assistant", "a"), ("user", "B?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    whole = [*messages, {"role": "assistant", "content": "b\nand c"}]
    name = write(tmp_path / "chat.jsonl", *[{"messages": whole}] * 3)
    (example, *_) = [
        example for split in ("train+validation", "test") for example in _loaded(name, split)
    ]
    after = "a\n\n### Instruction:\nB?\n\n### Response:\n"
    assert example.prompt == alpaca("Be brief.\n\nA?") + after
    assert example.response == "b\nand c"
    assert tasks.score(example, "b\nand c ") == 1.0
    assert tasks.score(example, "b") == 0.0


def _loaded(name: str, split: str) -> list[tasks.Example]:
    try:
        return tasks.load(name, split)
    except UserError:  # all examples are in another split
        return []


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        ({"prompt": "a"}, "line 1: .* text field 'response'"),
        ({"prompt": "a", "response": "b", "choices": "ab"}, "line 1: .* list of texts"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 1: .* in turn"),
        ({"messages": [{"content": "a"}]}, "line 1: .* 'role'"),
        ({"messages": []}, "line 1: .* in turn"),
    ],
)
def test_malformed_examples_are_reported_with_their_line(tmp_path, example, complaint) -> None:
    name = write(tmp_path / "wrong.jsonl", example)
    with pytest.raises(UserError, match=complaint):
        tasks.load(name, "train")


def test_a_missing_file_and_an_empty_split_are_reported(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere\.jsonl"):
        tasks.load(str(tmp_path / "nowhere.jsonl"), "train")
    name = write(tmp_path / "few.jsonl", {"prompt": "a", "response": "b"})
    empty = [split for split in ("train", "validation", "test") if not _loaded(name, split)]
    assert len(empty) == 2
    with pytest.raises(UserError, match=f"none of the 1 examples .* is for {empty[0]}"):
        tasks.load(name, empty[0])


def test_flip_reverses_words_and_needs_no_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    for example in tasks.load("flip", "test", size=300):
        word = example.prompt.removeprefix("Flip ").removesuffix("\nAnswer:")
        assert example.answer == word[::-1] and 2 <= len(word) <= 4
        assert tasks.score(example, example.response) == 1.0


def test_a_single_generator_takes_its_own_settings() -> None:
    pytest.importorskip("reasoning_gym")
    name = "reasoning_gym:chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    examples = tasks.load(name, "train", size=20, seed=1)
    assert len(examples) == 20 and all(e.task == name for e in examples)
    assert all(tasks.score(e, e.response) == 1.0 for e in examples)
    assert all(re.fullmatch(r"\d [-+] \d", re.search(r"\d.*\d", e.prompt)[0]) for e in examples)
    for wrong in ("reasoning_gym:chainsum", "reasoning_gym:chain_sum:max_value=3"):
        with pytest.raises(UserError, match="reasoning-gym cannot make"):
            tasks.load(wrong, "train", size=2)
    with pytest.raises(UserError, match="NAME=VALUE"):
        tasks.load("reasoning_gym:chain_sum:easy", "train")
