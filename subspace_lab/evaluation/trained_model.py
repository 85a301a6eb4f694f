"""A trained model from a run: the base with one of the run's adapters on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from subspace_lab import models, tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation.responses import ResponseBatch, response_batches
from subspace_lab.module_names import unwrapped
from subspace_lab.peft_files.weights import find_weights, read_tensors, tensor_shapes
from subspace_lab.runs.run import Run
from subspace_lab.tasks.examples import Example

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainedModel:
    """A base model with a run's adapter, in evaluation mode."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: models.Base
    step: int
    dtype: models.Precision

    def batches(
        self, examples: Sequence[Example], *, batch_size: int, description: str
    ) -> Iterator[ResponseBatch]:
        """Batch examples for teacher forcing, with a progress bar (see `response_batches`)."""
        return response_batches(
            self.tokenizer,
            [(example.prompt, example.response) for example in examples],
            batch_size=batch_size,
            device=self.model.device,
            description=description,
        )


def load_trained(
    run: Run,
    *,
    step: int | None = None,
    base: str | None = None,
    dtype: models.Precision = "fp32",
) -> TrainedModel:
    """Load a run's adapter onto its base, through stock PEFT, on the GPU where there is one.

    Args:
        run: a recorded run or a foreign adapter.
        step: which snapshot; None: the final one (with a warning where the run is not finished).
        base: the base model; None: the one that the run or the adapter names.
        dtype: of the base's weights and of what is computed, whatever the run was trained in; the
            adapter's weights are fp32 in both.

    Raises:
        UserError: if there is no such snapshot, no base is known, or the adapter does not fit it.
    """
    from peft import PeftConfig

    adapters = run.adapter_folders
    if not adapters:
        raise UserError(f"{run.path} has no saved adapters: open its folder of checkpoints instead")
    if step is None:
        step = run.final_step
        if not run.finished:
            warnings.warn(
                f"{run.path} is not finished: this is its adapter of step {step}", stacklevel=2
            )
        if run.best_step is not None and run.best_step != step:
            warnings.warn(
                f"this is the last adapter of {run.path}, of step {step}; the best one by its "
                f"evaluations is of step {run.best_step}: choose it with `step` {run.best_step}",
                stacklevel=2,
            )
    if run.diverged_at is not None:
        warnings.warn(
            f"{run.path} has diverged: its weights are not finite from step {run.diverged_at} on",
            stacklevel=2,
        )
    if step not in adapters:
        raise UserError(f"{run.path} has no snapshot of step {step}, only of {sorted(adapters)}")
    folder = str(adapters[step])
    name = (
        base or run.config.get("base") or PeftConfig.from_pretrained(folder).base_model_name_or_path
    )
    if not name:
        raise UserError(f"{run.path} does not name its base model: set `base`")
    location = models.find_base(str(name))
    model = _with_adapter(models.load_model(location, dtype=dtype), adapters[step], location.name)
    model.to(models.preferred_device())
    return TrainedModel(model.eval(), models.load_tokenizer(location), location, step, dtype)


def _with_adapter(base: PreTrainedModel, folder: Path, base_name: str) -> PeftModel:
    """Put an adapter on a model and check that every weight has a place.

    `PeftModel.from_pretrained` only warns of modules without weights, which then do nothing, and
    drops weights without a module silently.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    weights = _read_weights(folder)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    config.base_model_name_or_path = None  # PEFT warns where its spelling is not the model's own
    try:
        model: PeftModel = get_peft_model(base, config)
        result = set_peft_model_state_dict(model, weights)
    except KeyError as error:
        raise UserError(
            f"the adapter {folder} does not fit {base_name}: its file lacks {error}"
        ) from error
    except (RuntimeError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cannot load the adapter {folder} onto {base_name} ({first_line}): try another `step` "
            "or `base`"
        ) from error
    misfit = _misfit(model, missing=result.missing_keys, unexpected=result.unexpected_keys)
    if misfit and not config.is_prompt_learning:  # whose one tensor PEFT loads by itself
        raise UserError(
            f"the adapter {folder} does not fit {base_name}: {misfit}. Set `base` to the model "
            "that it was trained on, or correct its file"
        )
    return model


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read an adapter's tensors by name, without what wrappers of the trained model added."""
    file = find_weights(folder)
    if file is None:
        raise UserError(f"the adapter {folder} has no weights file: save or download it again")
    names = list(tensor_shapes(file))
    return dict(zip(map(unwrapped, names), read_tensors(file, names), strict=True))


def _misfit(model: PeftModel, *, missing: Iterable[str], unexpected: list[str]) -> str:
    """Say how many modules lack weights and which tensors fit no module; empty if all fit."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    # Such as lora_, with which the names of an adapter's weights begin.
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[model.active_peft_config.peft_type]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # What several modules share, such as a bank of vectors, is stored under one of their names.
    absent = set(missing)
    read = {id(parameter) for name, parameter in parameters.items() if name not in absent}
    adapted = {name: name.partition(f".{prefix}")[0] for name in parameters if f".{prefix}" in name}
    lacking = [name for name in adapted if id(parameters[name]) not in read]
    if not lacking and not unexpected:
        return ""
    modules = set(adapted.values())
    whole = len(modules - {adapted[name] for name in lacking})
    text = f"{whole} of the {len(modules)} modules that it adapts have their weights in its file"
    if unexpected:
        return (
            f"{text}, and {len(unexpected)} of its tensors fit no module, such as {unexpected[0]}"
        )
    return f"{text}; {lacking[0].replace('.default', '')} is missing"


def evaluation_examples(
    run: Run, *, split: str | None = None, size: int | None = None
) -> list[Example]:
    """Load the examples of a split that the run's training scored, or the first `size` of them.

    Args:
        run: a recorded run.
        split: `test` or `validation`; None: `eval_split` (test where it is `none`).
        size: at most so many; of a split that training did not score, `size` are drawn.

    Raises:
        UserError: if the run does not say which task it was trained on.
    """
    config = run.config
    if "task" not in config:
        raise UserError(
            f"{run.path} is not a recorded run and does not name a task to evaluate it on"
        )
    split = split or run.evaluated_split
    scored = {run.evaluated_split: config.get("eval_size")}
    if config.get("test_size") is not None:
        scored["test"] = config["test_size"]
    examples = tasks.load(
        config["task"],
        split,
        size=scored.get(split, size),
        seed=tasks.EVALUATION_SEED,
        data_dir=config.get("data_dir"),
        difficulty=config.get("difficulty", "easy"),
    )
    return examples[:size]
