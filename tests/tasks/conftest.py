"""The hub is replaced by rows in memory; published files are used where a machine has them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

REPOSITORY = Path(__file__).parents[2]

HubRows = dict[tuple[str, str | None, str | None, str], list[dict[str, Any]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[HubRows], None]:
    """Serve rows by (id, configuration, folder, split); all else is missing."""

    def serve(rows: HubRows) -> None:
        def load_dataset(
            path: str, name: str | None = None, *, data_dir: str | None = None, split: str
        ) -> list[dict[str, Any]]:
            if (path, name, data_dir, split) not in rows:
                raise FileNotFoundError(f"no dataset {path} {name} {data_dir} {split}")
            return rows[path, name, data_dir, split]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return serve


@pytest.fixture(scope="session")
def published() -> Path:
    """Find a data folder with published files: SUBSPACE_LAB_DATA, or one beside the checkout."""
    named = os.environ.get("SUBSPACE_LAB_DATA")
    beside = [found.parent for found in REPOSITORY.parent.glob("*/data/commonsense")]
    folders = [Path(named)] if named else beside
    if not folders:
        pytest.skip("no published data: name its folder in SUBSPACE_LAB_DATA")
    return folders[0]
