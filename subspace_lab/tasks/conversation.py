"""Conversation: WizardLM's evolved instructions (Xu et al., 2023), to train on.

With a data folder: `conversation/wizardlm_train.jsonl`. An example holds `conversations`, a list of
turns `{"from": ..., "value": ...}` of which the first question and answer are taken, or the two
fields `human` and `assistant`.
"""

from __future__ import annotations

from pathlib import Path

from subspace_lab.errors import UserError
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.prompts import alpaca
from subspace_lab.tasks.sources import HubSet, StoredExample, read

NAMES = ("wizardlm",)

WIZARDLM = HubSet("fxmeng/WizardLM_evol_instruct_V2_143k")


def load(name: str, split: str, *, data_dir: str | Path | None = None) -> list[Example]:
    """Load the "train" examples.

    Raises:
        UserError: if data is missing or malformed, or another split is asked for.
    """
    if split != "train":
        raise UserError(f"{name} has only a train split: conversation is judged on MT-Bench")
    examples = read("conversation/wizardlm_train.jsonl", WIZARDLM, split=split, data_dir=data_dir)
    return [_example(name, stored) for stored in examples]


def score(example: Example, generated_text: str) -> float:
    """Refuse: a conversation is judged, not compared.

    Raises:
        UserError: always.
    """
    raise UserError(f"{example.task} has no automatic score: conversation is judged on MT-Bench")


def _example(name: str, stored: StoredExample) -> Example:
    turns = stored.fields.get("conversations")
    if turns is None:
        question, answer = stored.text("human"), stored.text("assistant")
    else:
        try:
            question, answer = turns[0]["value"], turns[1]["value"]
        except (LookupError, TypeError) as error:
            raise stored.error("needs two turns with a 'value' in 'conversations'") from error
        if not (isinstance(question, str) and isinstance(answer, str)):
            raise stored.error("has a turn whose 'value' is not text")
    return Example(name, alpaca(question), answer, answer)
