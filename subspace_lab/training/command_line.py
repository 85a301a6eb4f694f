"""Command lines that set a flat dataclass: presets by name, overrides by each field's own name."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

import jsonargparse
import yaml

from subspace_lab.errors import UserError
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.presets import read_preset

NOT_IN_PRESETS = {"config", "help", "print_config"}  # of the parser, but not fields
LISTS = [f"--{field.name}" for field in fields(TrainConfig) if str(field.type).startswith("list")]


class Help(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Formats help with the line breaks of its description and epilog."""


def training_parser(description: str) -> jsonargparse.ArgumentParser:
    """Return a parser with `--config` (later ones win) and one flag per `TrainConfig` field."""
    parser = jsonargparse.ArgumentParser(
        description=description, exit_on_error=False, default_env=False, formatter_class=Help
    )
    parser.add_argument(
        "--config",
        action="config",
        help="preset name or YAML file; may be given several times, later ones win",
    )
    parser.add_class_arguments(TrainConfig)
    return parser


def parse(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the command line; preset names are replaced by their fields.

    Raises:
        UserError: if a preset or a key is unknown, or a value has the wrong type.
    """
    try:
        namespace = parser.parse_args(_with_presets_read(parser, _with_lists(arguments)))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{message} (see --help)") from error
    values: dict[str, Any] = namespace.as_dict()
    values.pop("config", None)
    return values


def _with_lists(arguments: Sequence[str]) -> list[str]:
    """Write the words after a flag that takes a list as one: `--targets q_proj v_proj`.

    They may also be separated by commas, or be a list in YAML or JSON already.
    """
    rewritten: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        flag, _, first = argument.partition("=")
        if flag not in LISTS:
            rewritten.append(argument)
            continue
        words = [first]
        while waiting and not waiting[0].startswith("-"):
            words.append(waiting.pop(0))
        text = " ".join(words).strip()
        if text != "null" and not text.startswith("["):
            text = f"[{', '.join(text.replace(',', ' ').split())}]"
        rewritten.append(f"{flag}={text}")
    return rewritten


def _with_presets_read(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    known = {action.dest for action in parser._actions} - NOT_IN_PRESETS
    replaced = list(arguments)
    for i, argument in enumerate(replaced):
        if argument.startswith("--config="):
            replaced[i] = "--config=" + _as_yaml(argument.removeprefix("--config="), known)
        elif argument == "--config" and i + 1 < len(replaced):
            replaced[i + 1] = _as_yaml(replaced[i + 1], known)
    return replaced


def _as_yaml(preset: str, known: Collection[str]) -> str:
    return yaml.safe_dump(read_preset(preset, known))
