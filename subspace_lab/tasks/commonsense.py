"""The eight commonsense sets in the format of LLM-Adapters (Hu et al., 2023), and their union.

An instruction ends with its answer format ("Answer format: true/false"), its output is "the
correct answer is X". BoolQ comes without its passage here, so its scores are not those of the
usual BoolQ.

With a data folder, a set is `commonsense/SET/{train,test}.json`, as LLM-Adapters publishes them.
From the hub, the union's training examples are those of `zwhe99/commonsense_170k` (170,420), the
filtered union's those of `fxmeng/pissa-dataset`, and single sets come from
`fxmeng/commonsense_filtered`, whose training examples are filtered too.
"""

from __future__ import annotations

import re
from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca, alpaca_instruction
from subspace_lab.tasks.sources import HubSet, StoredExample, read

FOLDERS = {
    "boolq": "boolq",
    "piqa": "piqa",
    "siqa": "social_i_qa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "openbookqa": "openbookqa",
}
"""Set, and its folder in LLM-Adapters; on the hub the folder is the set's name."""

UNIONS = {
    "commonsense_170k": HubSet("zwhe99/commonsense_170k"),
    "commonsense_filtered": HubSet("fxmeng/pissa-dataset", folder="commonsense"),
}

NAMES = (*FOLDERS, *UNIONS)

LABELS = tuple(
    re.compile(pattern)
    for pattern in ("true|false", "solution[12]", "answer[1-5]", "ending[1-4]", "option[12]")
)
FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")


def load(name: str, split: str, *, data_dir: str | Path | None = None) -> list[Example]:
    """Load the "train" or "test" examples of a set, or of the union of all eight.

    Raises:
        UserError: if data is missing, or an example is not in LLM-Adapters' format.
    """
    if name in FOLDERS:
        file = f"commonsense/{FOLDERS[name]}/{split}.json"
        hub = HubSet("fxmeng/commonsense_filtered", folder=name)
        return [
            _example(name, stored) for stored in read(file, hub, split=split, data_dir=data_dir)
        ]
    if name == "commonsense_filtered" and split == "train" and data_dir is not None:
        raise UserError(
            "commonsense_filtered is read from the hub only: omit the data folder, or choose "
            "commonsense_170k"
        )
    if split == "train" and data_dir is None:
        examples = read("commonsense/SET/train.json", UNIONS[name], split=split, data_dir=None)
        return [_example(name, stored) for stored in examples]
    return [example for one in FOLDERS for example in load(one, split, data_dir=data_dir)]


def score(example: Example, generated_text: str) -> float:
    """Give 1.0 if the first label in the text is the answer; a text without a label is wrong.

    >>> example = Example("boolq", "...", "the correct answer is true", "true")
    >>> [score(example, text) for text in ("the correct answer is true", "false, not true", "yes")]
    [1.0, 0.0, 0.0]
    """
    first = _label(example.answer).search(generated_text)
    return float(first is not None and first.group() == example.answer)


def _example(name: str, stored: StoredExample) -> Example:
    instruction, output = alpaca_instruction(stored.text("instruction")), stored.text("output")
    labels = FORMAT.search(instruction)
    if labels is None:
        raise stored.error("has an instruction that does not end with 'Answer format: ...'")
    choices = {f"the correct answer is {label}": label for label in labels[1].split("/")}
    if output not in choices:
        raise stored.error(f"has the output {output!r}, none of the answers {labels[1]}")
    return Example(name, alpaca(instruction), output, choices[output], choices=tuple(choices))


def _label(answer: str) -> re.Pattern[str]:
    return next(pattern for pattern in LABELS if pattern.fullmatch(answer))
