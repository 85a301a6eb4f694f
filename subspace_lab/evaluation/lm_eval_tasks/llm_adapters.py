"""What the YAML files beside this module call: the rows and the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subspace_lab.errors import UserError
from subspace_lab.tasks.prompts import alpaca

if TYPE_CHECKING:
    from datasets import Dataset


def load(*, name: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Read the test rows of one set.

    Args:
        name: The set's folder, given by its YAML file.
        data_dir: The folder that holds `commonsense/`, given as lm-eval metadata.
        _: What else lm-eval's metadata holds.

    Raises:
        UserError: if `data_dir` is not given or holds no such set.
    """
    from datasets import Dataset

    if data_dir is None:
        raise UserError(
            "the LLM-Adapters tasks read local files: name their folder by data_dir, which is "
            """--metadata '{"data_dir": "..."}' on lm_eval's command line"""
        )
    path = Path(data_dir) / "commonsense" / name / "test.json"
    if not path.is_file():
        raise UserError(f"there is no {path}: put LLM-Adapters' {name}/test.json there")
    return {"test": Dataset.from_list(json.loads(path.read_text()))}


def prompt(row: dict[str, Any]) -> str:
    """The row's instruction in the template that the adapters are trained with."""
    return alpaca(row["instruction"])
