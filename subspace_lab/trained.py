"""A trained model from a run: the base with one of the run's adapters on it."""

from __future__ import annotations

import warnings
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
    """Load a run's adapter onto its base, through stock PEFT, on the GPU where there is one.

    Args:
        run: a recorded run or a foreign adapter.
        step: which snapshot; None: the last (with a warning where the run is not finished).
        base: the base model; None: the one that the run or the adapter names.

    Raises:
        UserError: if there is no such snapshot, or no base is known.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    adapters = run.adapter_folders
    if not adapters:
        raise UserError(f"{run.path} has no saved adapters: name its folder of checkpoints instead")
    if step is None:
        step = max(adapters)
        if not run.finished:
            warnings.warn(
                f"{run.path} is not finished: this is its adapter of step {step}", stacklevel=2
            )
    if step not in adapters:
        raise UserError(f"{run.path} has no snapshot of step {step}, only of {sorted(adapters)}")
    folder = str(adapters[step])
    name = (
        base or run.config.get("base") or PeftConfig.from_pretrained(folder).base_model_name_or_path
    )
    if not name:
        raise UserError(f"{run.path} does not say which base model it belongs to: give --base")
    found = models.find_base(str(name))
    try:
        model = PeftModel.from_pretrained(models.load_model(found), folder)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the adapter {folder} does not go onto {found.name} ({first_line}): give "
            "another --step or --base"
        ) from error
    model.to(models.preferred_device())
    return TrainedModel(model.eval(), models.load_tokenizer(found), found, step)


def evaluation_examples(run: Run, *, size: int | None = None) -> list[Example]:
    """Load the rows of `eval_split` (test rows where it is `none`), or the first `size` of them.

    Raises:
        UserError: if the run does not say which task it was trained on.
    """
    config = run.config
    if "task" not in config:
        raise UserError(f"{run.path} is no recorded run and names no task to evaluate it on")
    examples = tasks.load(
        config["task"],
        run.evaluated_split,
        size=config.get("eval_size"),
        seed=tasks.EVALUATION_SEED,
        data_dir=config.get("data_dir"),
        difficulty=config.get("difficulty", "easy"),
    )
    return examples[:size]
