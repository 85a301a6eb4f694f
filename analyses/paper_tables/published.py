"""Tables 1 to 6 of the DropLoRA paper, and what is wrong with some numbers: published.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LLAMA2, LLAMA3 = "LLaMA2-7B", "LLaMA3-8B"
AVERAGE = "Average"


@dataclass(frozen=True)
class Row:
    """One row of Tables 1 to 5, its scores and trainable parameters as printed, the average last.

    `cited` says whether the paper took it from another one. The `rank` is 0 where there is no
    adapter, and `prune_prob` None where the table does not vary the pruning rate.
    """

    model: str
    method: str
    printed: tuple[str, ...]
    parameters: str = ""
    cited: bool = False
    rank: int = 32
    prune_prob: float | None = None

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores as numbers."""
        return tuple(map(float, self.printed))

    @property
    def label(self) -> str:
        """The method, marked where the row was taken from another paper."""
        return f"{self.method} (cited)" if self.cited else self.method


@dataclass(frozen=True)
class Table:
    """One of Tables 1 to 5.

    Attributes:
        columns: task of `subspace_lab.evaluate` to the column's title; an average follows.
        rank: rank of the paper's own rows.
        notes: by (model, method, column title); column "" for the whole row.
        scale: what an evaluation's value is multiplied by: 100 for accuracies.
    """

    number: int
    title: str
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    rank: int = 32
    notes: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    scale: float = 100.0


@dataclass(frozen=True)
class DataSet:
    """One row of Table 6, as printed, named as the columns of Tables 1 to 3 where it has one.

    CS is commonsense; the notes say what is wrong with a number, and are empty otherwise.
    """

    name: str
    domain: str
    train: str
    test: str
    answer: str
    train_note: str = ""
    test_note: str = ""


def _table(content: Mapping[str, Any]) -> Table:
    notes = {tuple(note["at"]): note["note"] for note in content.get("notes", [])}
    rows = tuple(_rows(content["rows"], rank=content.get("rank", 32)))
    return Table(**{**content, "rows": rows, "notes": notes})


def _rows(text: str, *, rank: int) -> Iterator[Row]:
    """Read rows (method, parameters, scores), each block under a line that names its model.

    A block that the paper took from another one is marked `(cited)`; `-` is no base model.
    """
    model, cited = "", False
    for line in text.strip().splitlines():
        method, *rest = line.split()
        if rest in ([], ["(cited)"]):
            model, cited = method.strip("-"), bool(rest)
            continue
        parameters, *printed = rest
        own_rank = 0 if method in ("Full", "ChatGPT") else rank
        yield Row(model, method, tuple(printed), parameters, cited, own_rank)


_CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
TABLES = tuple(_table(table) for table in _CONTENT["tables"])
TABLE_5 = Table(
    number=5,
    title="Ranks and pruning rates, average commonsense accuracy (%)",
    columns=TABLES[0].columns,
    rows=tuple(Row(**{**row, "printed": tuple(row["printed"])}) for row in _CONTENT["ranks"]),
)
TABLE_6 = tuple(DataSet(**row) for row in _CONTENT["datasets"])
