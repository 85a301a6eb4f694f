"""A trained model from a run: the base with one of the run's adapters on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from subspace_lab import models, tasks
from subspace_lab.errors import UserError
from subspace_lab.module_names import unwrapped

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from subspace_lab.runs.run import Run
    from subspace_lab.tasks import Example


@dataclass(frozen=True)
class TrainedModel:
    """A base model with a run's adapter, in evaluation mode."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: models.Base
    step: int
    dtype: models.Precision


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
        raise UserError(f"{run.path} has no saved adapters: name its folder of checkpoints instead")
    if step is None:
        step = run.final_step
        if not run.finished:
            warnings.warn(
                f"{run.path} is not finished: this is its adapter of step {step}", stacklevel=2
            )
        if run.best_step is not None and run.best_step != step:
            warnings.warn(
                f"this is the last adapter of {run.path}, of step {step}; the best one by its "
                f"evaluations is of step {run.best_step}: choose it with --step {run.best_step}",
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
        raise UserError(f"{run.path} does not say which base model it belongs to: give --base")
    found = models.find_base(str(name))
    model = _with_adapter(models.load_model(found, dtype=dtype), adapters[step], found.name)
    model.to(models.preferred_device())
    return TrainedModel(model.eval(), models.load_tokenizer(found), found, step, dtype)


def _with_adapter(base: PreTrainedModel, folder: Path, base_name: str) -> PeftModel:
    """Put an adapter on a model and check that each of its weights found its place.

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
            f"the adapter {folder} does not go onto {base_name} ({first_line}): give "
            "another --step or --base"
        ) from error
    misfit = _misfit(model, missing=result.missing_keys, unexpected=result.unexpected_keys)
    if misfit and not config.is_prompt_learning:  # whose one tensor PEFT loads by itself
        raise UserError(
            f"the adapter {folder} does not fit {base_name}: {misfit}. Name the base that it was "
            "trained on with --base, or correct its file"
        )
    return model


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read an adapter's tensors by name, without what wrappers of the trained model added."""
    from subspace_lab.peft_files.weights import find_weights, read_tensors, tensor_shapes

    file = find_weights(folder)
    if file is None:
        raise UserError(f"the adapter {folder} has no weights file: save or download it again")
    names = list(tensor_shapes(file))
    return dict(zip(map(unwrapped, names), read_tensors(file, names), strict=True))


def _misfit(model: PeftModel, *, missing: Iterable[str], unexpected: list[str]) -> str:
    """Say how many adapted modules lack weights and which tensors fit nowhere; empty if all fit."""
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
