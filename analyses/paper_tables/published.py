"""The numbers of Tables 1 to 5 of the DropLoRA paper, and what is wrong with some of them.

Each is one run with one seed (the paper reports none besides); accuracies are in per cent. Notes
hold what can be checked from the tables and the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LLAMA2, LLAMA3 = "LLaMA2-7B", "LLaMA3-8B"
AVERAGE = "Average"


@dataclass(frozen=True)
class Row:
    """One row of a table.

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
    """One table.

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


def _rows(text: str, *, rank: int = 32) -> tuple[Row, ...]:
    """Read rows (method, parameters, scores), each block under a line that names its model.

    A block that the paper took from another one is marked `(cited)`; `-` is no base model.
    """
    rows = []
    model, cited = "", False
    for line in text.strip().splitlines():
        method, *rest = line.split()
        if rest in ([], ["(cited)"]):
            model, cited = method.strip("-"), bool(rest)
            continue
        parameters, *printed = rest
        own_rank = 0 if method in ("Full", "ChatGPT") else rank
        rows.append(Row(model, method, parameters, tuple(printed), cited, own_rank))
    return tuple(rows)


COMMONSENSE = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "siqa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
}

TABLE_1 = Table(
    1,
    "Commonsense reasoning, accuracy (%)",
    COMMONSENSE,
    _rows(
        """
        - (cited)
            ChatGPT - 73.1 85.4 68.5 78.5 66.1 89.8 79.9 74.8 77.0
        LLaMA2-7B (cited)
            LoRA   56.10M 69.8 79.9 79.5 83.6 82.6 79.8 64.7 81.0 77.6
            DoRA   56.98M 71.8 83.7 76.0 89.1 82.6 83.7 68.2 82.4 79.7
            PiSSA  56.10M 67.6 78.1 78.4 76.6 78.0 75.8 60.2 75.6 73.8
            MiLoRA 56.10M 67.6 83.8 80.1 88.2 82.0 82.8 68.8 80.6 79.2
        LLaMA2-7B
            LoRA     56.10M 74.37 87.38 81.32 95.07 85.79 88.80 75.34 87.00 84.38
            DoRA     56.98M 74.46 86.18 80.60 94.91 87.53 89.14 75.85 86.40 84.39
            PiSSA    56.10M 73.27 82.59 79.84 92.88 84.77 85.23 71.33 84.80 81.84
            MiLoRA   56.10M 74.53 86.45 80.81 95.23 86.90 89.48 76.54 86.00 84.49
            DropLoRA 56.10M 74.22 87.00 80.91 95.24 87.61 89.73 77.30 87.20 84.91
        LLaMA3-8B (cited)
            LoRA   56.62M 70.8 85.2 79.9 91.7 84.3 84.2  71.2 79.0 80.8
            DoRA   57.41M 74.6 89.3 79.9 95.5 85.6 90.5  80.4 85.8 85.2
            PiSSA  56.62M 67.1 81.1 77.2 83.6 78.9 77.7  63.2 74.6 75.4
            MiLoRA 56.62M 68.8 86.7 77.2 92.9 85.6 89.48 75.5 81.8 81.9
        LLaMA3-8B
            LoRA     56.62M 75.54 89.06 81.12  95.99 88.08 92.80 82.59 89.20 86.78
            DoRA     57.41M 75.41 89.12 88.127 95.83 87.69 92.42 82.59 89.00 86.67
            PiSSA    56.62M 72.66 86.13 80.14  93.60 84.77 89.73 76.88 86.00 83.74
            MiLoRA   56.62M 74.53 86.45 80.81  95.23 86.90 89.48 76.54 86.00 84.49
            DropLoRA 56.62M 76.45 90.04 82.19  96.59 89.34 93.18 83.28 89.80 87.61
        """,
    ),
    notes={
        (LLAMA3, "MiLoRA", ""): "this row equals MiLoRA's row of LLaMA2-7B digit for digit",
        (LLAMA3, "DoRA", "SIQA"): "three decimals, and the row's average implies about 81.30",
        (LLAMA2, "DoRA", AVERAGE): "the row's eight values average 84.384, as LoRA's do",
        (LLAMA2, "DropLoRA", AVERAGE): "the row's eight values average 84.901 and LoRA's 84.384: "
        "the gain is 0.518, where the text claims 0.53",
        (LLAMA3, "LoRA", AVERAGE): "the row's eight values average 86.798",
        (LLAMA3, "DropLoRA", AVERAGE): "the row's eight values average 87.609 and LoRA's 86.798: "
        "the gain is 0.811, where the text claims 0.83",
        (LLAMA3, "MiLoRA (cited)", "ARC-e"): "the value of the paper's own MiLoRA row in a row of "
        "one-decimal numbers; the row's average implies about 86.7",
    },
)

TABLE_2 = Table(
    2,
    "Math reasoning, accuracy (%)",
    {"gsm8k": "GSM8K", "math": "MATH"},
    _rows(
        """
        LLaMA2-7B (cited)
            Full   6738M   66.5 19.8 43.2
            LoRA   112.20M 60.6 16.9 38.7
            PiSSA  112.20M 58.2 15.8 37.0
            MiLoRA 112.20M 63.5 17.8 40.7
        LLaMA2-7B
            LoRA     112.20M 65.66 16.02 40.84
            DoRA     113.07M 66.19 16.14 41.16
            PiSSA    112.20M 64.37 15.96 40.16
            MiLoRA   112.20M 64.52 14.92 39.72
            DropLoRA 112.20M 66.72 16.38 41.55
        LLaMA3-8B
            LoRA     113.25M 80.44 30.46 55.45
            DoRA     114.03M 80.44 30.21 55.32
            PiSSA    113.25M 79.53 28.92 54.22
            MiLoRA   113.25M 80.74 30.62 55.68
            DropLoRA 113.25M 81.32 30.74 56.03
        """,
        rank=64,
    ),
    rank=64,
    notes={
        (LLAMA3, "DoRA", "MATH"): "not possible with 5,000 problems: 1,510 right answers are "
        "30.20 and 1,511 are 30.22",
        (LLAMA3, "DropLoRA", "GSM8K"): "not possible with 1,319 problems: 1,072 right answers are "
        "81.27 and 1,073 are 81.35",
    },
)

TABLE_3 = Table(
    3,
    "Code generation, pass@1 (%)",
    {"humaneval": "HumanEval", "mbpp": "MBPP"},
    _rows(
        """
        LLaMA2-7B (cited)
            Full 6738M 21.34 35.59 28.47
        LLaMA2-7B
            LoRA     56.10M 18.90 41.27 30.09
            DoRA     56.98M 14.63 42.86 28.75
            PiSSA    56.10M  9.76 42.86 26.31
            MiLoRA   56.10M 21.34 37.57 29.46
            DropLoRA 56.10M 21.34 43.39 32.37
        LLaMA3-8B
            LoRA     56.62M 62.81 65.87 64.34
            DoRA     57.41M 59.76 66.40 63.08
            PiSSA    56.62M 57.93 65.87 61.90
            MiLoRA   56.62M 59.76 66.93 63.35
            DropLoRA 56.62M 60.37 70.37 65.37
        """,
    ),
    notes={
        (LLAMA2, "Full (cited)", "MBPP"): "142 of 399 problems; the paper's own rows are of the "
        "378 problems of a later release, so the two cannot be compared",
        (LLAMA3, "LoRA", "HumanEval"): "not possible with 164 problems: 103 right answers are "
        "62.80 and 104 are 63.41",
        (LLAMA3, "DropLoRA", "HumanEval"): "below LoRA's 62.81, though the text calls DropLoRA the "
        "best on all four reasoning tasks",
    },
)

TABLE_4 = Table(
    4,
    "Conversation, MT-Bench score (1 to 10, judged by GPT-4)",
    {"mt_bench": "MT-Bench"},
    _rows(
        """
        LLaMA2-7B
            LoRA     56.10M 5.16
            DoRA     56.98M 5.33
            PiSSA    56.10M 5.20
            MiLoRA   56.10M 5.25
            DropLoRA 56.10M 5.54
        LLaMA3-8B
            LoRA     56.62M 6.31
            DoRA     57.41M 6.09
            PiSSA    56.62M 5.94
            MiLoRA   56.62M 6.11
            DropLoRA 56.62M 6.42
        """,
    ),
    notes={
        (LLAMA3, "DropLoRA", "MT-Bench"): "0.11 above LoRA, where the text claims 0.38",
    },
    scale=1.0,
)

TABLES = (TABLE_1, TABLE_2, TABLE_3, TABLE_4)


@dataclass(frozen=True)
class RankRow:
    """One row of Table 5: accuracy is the average over the commonsense sets, on LLaMA2-7B."""

    method: str
    rank: int
    prune_prob: float
    accuracy: float


TABLE_5 = (
    RankRow("LoRA", 16, 0.0, 84.5),
    RankRow("LoRA", 32, 0.0, 84.4),
    RankRow("DropLoRA", 32, 0.5, 84.9),
)
