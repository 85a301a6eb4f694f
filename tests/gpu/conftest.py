"""What only a GPU can prove (`make gpu`), marked `cuda`.

Without a GPU these tests run on the processor: all that stays untried then is the device.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.conftest import make_base


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Task files: built-in tasks need reasoning-gym, which a GPU machine may lack."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("test", 8)):
        rows = [
            {
                "instruction": f"{split} {i}?\n\nAnswer format: true/false",
                "input": "",
                "output": f"the correct answer is {'true' if i % 3 else 'false'}",
            }
            for i in range(count)
        ]
        file = folder / "commonsense" / "boolq" / f"{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
    return folder
