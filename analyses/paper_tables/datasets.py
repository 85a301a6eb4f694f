"""Table 6 of the DropLoRA paper: the data sets and their sizes, and what is wrong with some.

The number n of test examples decides which accuracies are possible: k / n for a whole number k of
right answers, to the decimals printed.
"""

from __future__ import annotations

from dataclasses import dataclass


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


TABLE_6 = (
    DataSet("BoolQ", "CS", "9.4K", "3,270", "Yes/No"),
    DataSet(
        "PIQA", "CS", "16.1K", "1,830", "Option",
        test_note="seven of the PIQA accuracies in Table 1 are not possible with 1,830 examples; "
        "all of them are with 1,838, the size of the published set",
    ),
    DataSet("SIQA", "CS", "33.4K", "1,954", "Option"),
    DataSet("HellaSwag", "CS", "39.9K", "10,042", "Option"),
    DataSet("WinoGrande", "CS", "63.2K", "1,267", "Option"),
    DataSet(
        "ARC-e", "CS", "1.1K", "2,376", "Option",
        train_note="swapped with ARC-c: ARC-e has 2,251 training examples and ARC-c 1,119",
    ),
    DataSet("ARC-c", "CS", "2.3K", "1,172", "Option", train_note="see ARC-e"),
    DataSet("OBQA", "CS", "5.0K", "500", "Option"),
    DataSet("GSM8K", "Math", "240K", "1,319", "Number"),
    DataSet("MATH", "Math", "155K", "5,000", "Number"),
    DataSet(
        "Python", "Code", "104,848", "563", "Code",
        test_note="HumanEval's 164 problems and 399 of MBPP; the MBPP accuracies of the paper's "
        "own rows in Table 3 are of 378",
    ),
    DataSet("Instruction Following", "Conversation", "143K", "80", "Text"),
)  # fmt: skip
