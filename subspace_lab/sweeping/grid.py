"""A sweep file: presets and fields for all runs, and a grid of what differs.

    presets: [pocket]             # --config of every run, in order
    fields: {train_size: 256}     # fields of every run
    grid:                         # a product, or a list of products
      - {method: [lora, pissa], seed: [0, 1, 2]}
      - {preset: [paper-code, paper-eq2], keep_prob: [0.5, 0.7, 0.9], seed: [0, 1, 2]}
    select: {field: keep_prob, score: response_loss}
    launch: [accelerate, launch, --config_file, ddp.yaml]      # default: this Python
    slurm: {timeout_min: 240, gpus_per_node: 1, slurm_partition: gpu}

In a grid every key is a field of `TrainConfig`, or `preset`, whose values are names or lists of
names. A sweep that selects evaluates on validation rows, never on the test set.
"""

from __future__ import annotations

import collections
import fnmatch
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from subspace_lab.configurations import MASK, identity, in_effect
from subspace_lab.errors import UserError
from subspace_lab.training.command_line import parse, training_parser
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.presets import CONFIGS

PRESET = "preset"
# What the evaluations during training give, and whether less is better.
SCORES = {"response_loss": True, "exact_match": False}


@dataclass(frozen=True)
class Selection:
    """What a sweep selects: the value of `field` with the best mean validation score."""

    field: str
    score: str = "response_loss"

    @property
    def less_is_better(self) -> bool:
        """Whether the best score is the lowest."""
        return SCORES[self.score]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of its folder; says the values of the grid.
        values: those values, by key.
        arguments: of the training command, without --out.
        config: what they mean.
    """

    name: str
    values: Mapping[str, Any]
    arguments: tuple[str, ...]
    config: TrainConfig


@dataclass(frozen=True)
class Sweep:
    """A sweep file's content.

    Attributes:
        jobs: the runs, each different.
        selection: what is selected, if anything.
        launch: the command in front of `-m subspace_lab.train`; empty: this Python.
        slurm: parameters of submitit's executor.
    """

    jobs: tuple[Job, ...]
    selection: Selection | None = None
    launch: tuple[str, ...] = ()
    slurm: Mapping[str, Any] = field(default_factory=dict)


def read_sweep(name: str | Path) -> Sweep:
    """Read a sweep file, by path or by its name among the shipped ones, and check every run.

    Raises:
        UserError: if the file is missing or malformed, a run's configuration is wrong, two runs
            would share a folder, or a sweep that selects would evaluate on the test set or has
            nothing to select from.
    """
    path = _find(name)
    content = _read(path)
    presets = [str(preset) for preset in _listed(content.get("presets", []))]
    shared = dict(content.get("fields") or {})
    selection = _read_selection(path, content)
    if selection is not None:
        shared.setdefault("eval_split", "validation")
    parser = training_parser("")
    jobs: dict[str, Job] = {}
    for values in _points(path, content.get("grid")):
        job = _make_job(parser, values, presets, shared)
        if selection is not None and job.config.eval_split != "validation":
            raise UserError(
                f"{path} selects {selection.field} but evaluates on {job.config.eval_split}: what "
                "is selected must be selected on eval_split validation"
            )
        jobs.setdefault(identity(in_effect(job.config.to_dict())), job)
    _check_names(path, jobs.values())
    if selection is not None:
        _check_choice(path, selection, jobs.values())
    return Sweep(
        jobs=tuple(jobs.values()),
        selection=selection,
        launch=tuple(map(str, _listed(content.get("launch") or []))),
        slurm=dict(content.get("slurm") or {}),
    )


def only(sweep: Sweep, patterns: Sequence[str]) -> Sweep:
    """Keep the runs whose names match one of some globs, such as `*seed=0*`.

    Raises:
        UserError: if a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(job.name, pattern) for job in sweep.jobs):
            names = ", ".join(job.name for job in sweep.jobs[:3])
            raise UserError(f"no run matches {pattern!r}: the runs are named like {names}")
    jobs = (job for job in sweep.jobs if any(fnmatch.fnmatchcase(job.name, p) for p in patterns))
    return replace(sweep, jobs=tuple(jobs))


def _find(name: str | Path) -> Path:
    shipped = CONFIGS / "sweeps" / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(file.stem for file in (CONFIGS / "sweeps").glob("*.yaml")))
    raise UserError(f"there is no sweep or file {str(name)!r}; the shipped sweeps are: {known}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    keys = ("presets", "fields", "grid", "select", "launch", "slurm")
    if not isinstance(content, dict) or not content.get("grid"):
        raise UserError(f"{path} has no grid: see `python -m subspace_lab.sweep --help`")
    for key in content:
        if key not in keys:
            raise UserError(f"{path} has the unknown key {key!r}: the keys are {', '.join(keys)}")
    for key in ("fields", "slurm"):
        if not isinstance(content.get(key) or {}, dict):
            raise UserError(f"{path}: {key} must hold `name: value` pairs")
    return content


def _read_selection(path: Path, content: Mapping[str, Any]) -> Selection | None:
    given = content.get("select")
    if given is None:
        return None
    given = {"field": given} if isinstance(given, str) else given
    if not isinstance(given, dict) or not {"field"} <= given.keys() <= {"field", "score"}:
        raise UserError(f"{path}: select takes a field and a score, such as {{field: keep_prob}}")
    selection = Selection(**{key: str(value) for key, value in given.items()})
    if selection.field not in {f.name for f in fields(TrainConfig)}:
        raise UserError(f"{path} selects {selection.field!r}, which is not a field of a run")
    if selection.field == "seed":
        raise UserError(f"{path} selects the seed, over which scores are averaged: select another")
    if selection.score not in SCORES:
        raise UserError(f"{path}: score must be one of {', '.join(SCORES)}")
    return selection


def _check_names(path: Path, jobs: Iterable[Job]) -> None:
    names = [job.name for job in jobs]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise UserError(f"{path}: {count} different runs of the grid would be named {name}")


def _check_choice(path: Path, selection: Selection, jobs: Iterable[Job]) -> None:
    values = {
        json.dumps(job.values[selection.field]) for job in jobs if selection.field in job.values
    }
    if len(values) < 2:
        raise UserError(
            f"{path} selects {selection.field}, but its grid has {len(values)} values of it: give "
            "at least 2"
        )


def _points(path: Path, grid: Any) -> Iterator[dict[str, Any]]:
    """Yield the points of all products, in the order of the file."""
    known = {f.name for f in fields(TrainConfig)} | {PRESET}
    for product in _listed(grid):
        if not isinstance(product, dict):
            raise UserError(f"{path}: grid must hold `field: [values]` pairs")
        for key in product:
            if key not in known:
                raise UserError(f"{path}: the grid has {key!r}, which is not a field of a run")
            if product[key] == []:
                raise UserError(f"{path}: the grid has no value of {key}: give at least one")
        axes = [_listed(values) for values in product.values()]
        for point in itertools.product(*axes):
            yield dict(zip(product, point, strict=True))


def _make_job(
    parser: ArgumentParser,
    values: Mapping[str, Any],
    presets: list[str],
    shared: Mapping[str, Any],
) -> Job:
    own = dict(values)
    chosen = [*presets, *_listed(own.pop(PRESET, []))]
    arguments, config = read_configuration(parser, chosen, {**shared, **own})
    shown = {key: value for key, value in values.items() if config.masked or key not in MASK}
    return Job(_folder_name(shown), shown, arguments, config)


def read_configuration(
    parser: ArgumentParser, presets: Iterable[str], fields: Mapping[str, Any]
) -> tuple[tuple[str, ...], TrainConfig]:
    """Give the training command's arguments for presets and fields, and what they mean.

    Raises:
        UserError: if they are not a configuration.
    """
    arguments = [f"--config={preset}" for preset in presets]
    arguments += [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in fields.items()
    ]
    return tuple(arguments), TrainConfig(**parse(parser, arguments))


def _folder_name(values: Mapping[str, Any]) -> str:
    parts = (f"{key}={'+'.join(map(str, _listed(value)))}" for key, value in values.items())
    return ",".join(parts).replace("/", "-").replace(" ", "") or "run"


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
