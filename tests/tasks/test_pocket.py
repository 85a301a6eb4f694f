"""The pocket model: it loads offline, knows what its README says, and an adapter changes it."""

from __future__ import annotations

import importlib.util
import math
import random
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from subspace_lab import tasks

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "subspace_lab" / "pocket"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Import the script that made the model."""
    path = REPOSITORY / "scripts" / "pretrain_pocket.py"
    specification = importlib.util.spec_from_file_location("pretrain_pocket", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_a_small_llama_in_a_small_folder(model) -> None:
    assert model.config.model_type == "llama"
    assert 1.8e6 < model.num_parameters() < 2.0e6
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4e6
    stored = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")
    assert stored.dtype == torch.float16


@pytest.mark.parametrize(
    "text", ["What is 7 times 18?\nAnswer: 126", "Größe, 漢字 and \t tabs", "x"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer("12 345")["input_ids"]) == 6  # every digit and the space alone


def test_prompt_and_response_tokenise_apart_as_together(tokenizer) -> None:
    for example in tasks.load("pocket", "test", size=50):
        apart = tokenizer(example.prompt)["input_ids"] + tokenizer(example.response)["input_ids"]
        assert tokenizer(example.prompt + example.response)["input_ids"] == apart


def test_it_knows_what_its_readme_says(script: ModuleType, model, tokenizer) -> None:
    table = (FOLDER / "README.md").read_text().partition("|---|---|\n")[2]
    for line in table.strip().splitlines():
        family, claimed = line.strip("| ").split(" | ")
        rows = script.rows(random.Random("test 0"), split="test", family=family)
        measured = script.exact_match(model, tokenizer, list(islice(rows, 80)))
        standard_error = math.sqrt(float(claimed) * (1 - float(claimed)) / 80)
        assert measured == pytest.approx(float(claimed), abs=4 * standard_error + 0.01)


def test_an_adapter_learns_the_form_of_the_answers_within_fifty_steps(
    script: ModuleType, model, tokenizer
) -> None:
    torch.manual_seed(0)
    train = [(e.prompt, e.response) for e in tasks.load("pocket", "train", size=400)]
    test = [(e.prompt, e.response) for e in tasks.load("pocket", "test", size=90)]
    before = script.exact_match(model, tokenizer, test)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    )
    adapted = get_peft_model(model, config)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=5e-3)
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 50)
        ids, mask, labels = script.collate(script.encode(tokenizer, train[8 * step : 8 * step + 8]))
        adapted(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = script.exact_match(adapted, tokenizer, test)
    # Most of the gain is the form of the answers and their most frequent one; sums gain little.
    assert before + 0.15 < after < 0.9
