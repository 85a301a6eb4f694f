"""Examples of your own: a JSON-lines file, or a JSON array, named as the task.

Each object holds either

- `prompt` and `response`, used as they are: put your template into the prompt, or
- `messages`, a list of `role` and `content` that ends with the assistant's, which is the response;
  the others are written in the Alpaca template.

Optional are `answer`, which generated text must equal (default: the response), and `choices`, the
candidate responses of a multiple-choice question. A hash of the prompt decides the split: 75 % of
the examples are for training, 5 % for validation, 20 % for testing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError
from subspace_lab.tasks.answers import same_text
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca_conversation
from subspace_lab.tasks.sources import StoredExample, read_file
from subspace_lab.tasks.splits import in_generated_split

ENDINGS = (".json", ".jsonl")


def load(name: str, split: str, *, data_dir: str | Path | None) -> list[Example]:
    """Read the examples of a split from a file, in `data_dir` where that is given.

    Raises:
        UserError: if the file is missing or malformed, or holds no examples of the split.
    """
    path = Path(data_dir or "") / name
    if not path.is_file():
        raise UserError(f"there is no file {path}: choose a task, or a .jsonl file of examples")
    examples = [_example(name, stored) for stored in read_file(path)]
    chosen = [example for example in examples if in_generated_split(example.prompt, split)]
    if not chosen:
        raise UserError(f"none of the {len(examples)} examples in {path} is for {split}: add more")
    return chosen


def score(example: Example, generated_text: str) -> float:
    """Give 1.0 if the text is the answer, else 0.0."""
    return float(same_text(generated_text, example.answer))


def _example(name: str, stored: StoredExample) -> Example:
    if "messages" in stored.fields:
        prompt, response = _conversation(stored)
    else:
        prompt, response = stored.text("prompt"), stored.text("response")
    answer = stored.text("answer") if "answer" in stored.fields else response.strip()
    choices = stored.fields.get("choices") or ()
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise stored.error("needs a list of texts as 'choices'")
    return Example(name, prompt, response, answer, tuple(choices))


def _conversation(stored: StoredExample) -> tuple[str, str]:
    messages = stored.fields["messages"]
    try:
        turns = [(message["role"], message["content"]) for message in messages]
    except (TypeError, KeyError) as error:
        raise stored.error("needs 'messages' with a 'role' and a 'content' each") from error
    system = [content for role, content in turns[:1] if role == "system"]
    roles, contents = zip(*turns[len(system) :], strict=True) if turns[len(system) :] else ((), ())
    if not roles or _not_alternating(roles) or not all(isinstance(c, str) for c in contents):
        raise stored.error("needs 'messages' of user and assistant in turn, with texts")
    questions = [*system, contents[0]]
    first = "\n\n".join(questions)
    return alpaca_conversation([first, *contents[2:-1:2]], contents[1:-1:2]), contents[-1]


def _not_alternating(roles: Sequence[Any]) -> bool:
    return list(roles) != ["user", "assistant"] * (len(roles) // 2)
