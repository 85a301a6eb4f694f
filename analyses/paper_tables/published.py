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
    """One row of Tables 1 to 4.

    Attributes:
        model: base model.
        method: as the table names it.
        parameters: trainable parameters, as printed.
        printed: the scores as printed, by column, the average last.
        cited: whether the paper took the row from another paper.
        rank: rank of the adapter; 0 where there is none.
    """

    model: str
    method: str
    parameters: str
    printed: tuple[str, ...]
    cited: bool = False
    rank: int = 32

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
    """One of Tables 1 to 4.

    Attributes:
        number: in the paper.
        title: what it shows.
        columns: task of `subspace_lab.evaluate` to the column's title; an average follows.
        rows: in order.
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
class RankRow:
    """One row of Table 5: accuracy is the average over the commonsense sets, on LLaMA2-7B."""

    method: str
    rank: int
    prune_prob: float
    accuracy: float
    model: str = LLAMA2


@dataclass(frozen=True)
class DataSet:
    """One row of Table 6, as printed.

    Attributes:
        name: as Tables 1 to 3 title its column, where they have one.
        domain: CS is commonsense.
        train: training examples.
        test: test examples.
        answer: form of the answers.
        train_note: what is wrong with `train`; empty where nothing is known to be.
        test_note: what is wrong with `test`.
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
        yield Row(model, method, parameters, tuple(printed), cited, own_rank)


_CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
TABLES = tuple(_table(table) for table in _CONTENT["tables"])
TABLE_5 = tuple(RankRow(**row) for row in _CONTENT["ranks"])
TABLE_6 = tuple(DataSet(**row) for row in _CONTENT["datasets"])
