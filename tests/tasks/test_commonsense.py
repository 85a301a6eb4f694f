from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.tasks import commonsense
from subspace_lab.tasks.prompts import alpaca

LABELS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "siqa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "arc_easy": ["answer1", "answer2", "answer3", "answer4"],
    "arc_challenge": ["answer1", "answer2", "answer3", "answer4", "answer5"],
    "openbookqa": ["answer1", "answer2", "answer3", "answer4"],
}


def row(name: str, question: str = "What?") -> dict[str, str]:
    labels = LABELS[name]
    return {
        "instruction": f"{name}: {question}\n\nAnswer format: {'/'.join(labels)}",
        "input": "",
        "output": f"the correct answer is {labels[-1]}",
        "answer": labels[-1],
    }


def write(folder: Path, name: str, split: str, rows: list[dict[str, str]]) -> None:
    path = folder / "commonsense" / commonsense.FOLDERS[name] / f"{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=4))


@pytest.mark.parametrize("name", LABELS)
def test_a_row_of_each_set(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "test", [row(name)])
    (example,) = tasks.load(name, "test", data_dir=tmp_path)
    assert example.task == name
    assert example.prompt == alpaca(row(name)["instruction"])
    assert example.response == row(name)["output"]
    assert example.choices == tuple(f"the correct answer is {label}" for label in LABELS[name])
    assert [tasks.score(example, choice) for choice in example.choices] == [
        *[0.0] * (len(LABELS[name]) - 1),
        1.0,
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the correct answer is answer2", 1.0),
        ("answer2, because answer3 is wrong", 1.0),
        ("answer3 is wrong, so answer2", 0.0),
        ("the correct answer is", 0.0),
        ("option2", 0.0),
        ("true answer2", 1.0),  # only this set's labels count
        ("", 0.0),
    ],
)
def test_the_first_label_of_the_sets_own_kind_counts(text: str, expected: float) -> None:
    example = tasks.Example("siqa", "", "the correct answer is answer2", "answer2")
    assert tasks.score(example, text) == expected


def test_the_union_is_all_eight_sets_and_remembers_them(tmp_path: Path) -> None:
    for name in LABELS:
        write(tmp_path, name, "train", [row(name, f"{i}?") for i in range(3)])
    union = tasks.load("commonsense_170k", "train+validation", data_dir=tmp_path)
    assert [example.task for example in union] == [name for name in LABELS for _ in range(3)]


def test_hub_rows_of_the_union_the_filtered_union_and_one_set(hub: Callable[..., None]) -> None:
    templated = {**row("piqa"), "instruction": alpaca(row("piqa")["instruction"])}
    hub(
        {
            ("zwhe99/commonsense_170k", None, None, "train"): [row("boolq"), row("siqa")],
            ("fxmeng/pissa-dataset", None, "commonsense", "train"): [row("boolq")],
            ("fxmeng/commonsense_filtered", None, "piqa", "test"): [templated],
        }
    )
    both = tasks.load("commonsense_170k", "train+validation")
    assert [tasks.score(example, example.response) for example in both] == [1.0, 1.0]
    assert len(tasks.load("commonsense_filtered", "train+validation")) == 1
    (one,) = tasks.load("piqa", "test")
    assert one.prompt == alpaca(row("piqa")["instruction"])  # the stored template is not doubled


def test_a_row_in_another_format_is_reported_with_its_line(tmp_path: Path) -> None:
    wrong_output = {**row("boolq"), "output": "yes"}
    write(tmp_path, "boolq", "test", [row("boolq"), wrong_output])
    with pytest.raises(UserError, match=r"boolq/test.json, line 8: .* output 'yes', none of"):
        tasks.load("boolq", "test", data_dir=tmp_path)
    write(tmp_path, "boolq", "test", [{**row("boolq"), "instruction": "Is it?"}])
    with pytest.raises(UserError, match=r"line 2: .* does not end with 'Answer format"):
        tasks.load("boolq", "test", data_dir=tmp_path)


def test_the_filtered_union_is_on_the_hub_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="from the hub only"):
        tasks.load("commonsense_filtered", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "train", "test"), [("arc_challenge", 1119, 1172), ("openbookqa", 4957, 500)]
)
def test_published_files(published: Path, name: str, train: int, test: int) -> None:
    rows = tasks.load(name, "train+validation", data_dir=published)
    validation = tasks.load(name, "validation", data_dir=published)
    training = tasks.load(name, "train", data_dir=published)
    assert (len(rows), len(tasks.load(name, "test", data_dir=published))) == (train, test)
    assert len(training) + len(validation) == train
    assert 0.03 < len(validation) / train < 0.07
    assert not {e.prompt for e in training} & {e.prompt for e in validation}
    assert all(tasks.score(e, e.response) == 1.0 and e.response in e.choices for e in rows)
