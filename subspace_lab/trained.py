"""A trained model from a run: the base with one of the run's adapters on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from subspace_lab import models, tasks
from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from subspace_lab.recording.run import Run
    from subspace_lab.tasks import Example


@dataclass(frozen=True)
class TrainedModel:
    """A base model with a run's adapter, in evaluation mode."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: models.Base
    step: int


def load_trained(run: Run, *, step: int | None = None, base: str | None = None) -> TrainedModel:
    """Load a run's adapter onto its base, through stock PEFT.

    Args:
        run: a recorded run or a foreign adapter.
        step: which snapshot; None: the last.
        base: the base model; None: the one that the run or the adapter names.

    Raises:
        UserError: if there is no such snapshot, or no base is known.
    """
    from peft import PeftModel

    if not run.snapshots:
        raise UserError(f"{run.path} has no adapter snapshots: record them with --snapshots")
    step = max(run.snapshots) if step is None else step
    if step not in run.snapshots:
        raise UserError(
            f"{run.path} has no snapshot of step {step}, only of {sorted(run.snapshots)}"
        )
    adapter = run.snapshots[step]
    name = base or run.config.get("base") or adapter.config.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{run.path} does not say which base model it belongs to: give --base")
    found = models.find_base(str(name))
    model = PeftModel.from_pretrained(models.load_model(found), str(adapter.path))
    return TrainedModel(model.eval(), models.load_tokenizer(found), found, step)


def evaluation_examples(run: Run, *, size: int | None = None) -> list[Example]:
    """Load the test rows that a run was evaluated on, or the first `size` of them.

    Raises:
        UserError: if the run does not say which task it was trained on.
    """
    config = run.config
    if "task" not in config:
        raise UserError(f"{run.path} is no recorded run and names no task to evaluate it on")
    examples = tasks.load(
        config["task"],
        "test",
        size=config.get("eval_size"),
        seed=config.get("seed", 0),
        data_dir=config.get("data_dir"),
        difficulty=config.get("difficulty", "easy"),
    )
    return examples[:size]
