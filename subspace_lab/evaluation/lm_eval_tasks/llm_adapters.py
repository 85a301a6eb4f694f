"""The examples that the YAML files beside this module ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from subspace_lab import tasks

if TYPE_CHECKING:
    from datasets import Dataset


def load(*, name: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Load the test examples of one set, with the prompt that adapters are trained with.

    Args:
        name: The set's name in `subspace_lab.tasks`, given by its YAML file.
        data_dir: The folder that holds `commonsense/`, given as lm-eval metadata; None reads the
            hub.
        _: What else lm-eval's metadata holds.

    Raises:
        UserError: if the examples are missing or malformed.
    """
    from datasets import Dataset

    examples = tasks.load(name, "test", data_dir=data_dir)
    return {"test": Dataset.from_list([{"prompt": e.prompt, "answer": e.answer} for e in examples])}
