"""Command lines that set a flat dataclass: presets by name, overrides by each field's own name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from subspace_lab.errors import UserError
from subspace_lab.training.config import TrainConfig, find_preset


def training_parser(description: str) -> jsonargparse.ArgumentParser:
    """Give a parser with `--config` (later ones win) and one flag per `TrainConfig` field."""
    parser = jsonargparse.ArgumentParser(
        description=description, exit_on_error=False, default_env=False
    )
    parser.add_argument(
        "--config",
        action="config",
        help="preset name or YAML file; may be given several times, later ones win",
    )
    parser.add_class_arguments(TrainConfig)
    return parser


def parse(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the command line; preset names are replaced by their files.

    Raises:
        UserError: if a key is unknown, or a value has the wrong type.
    """
    try:
        namespace = parser.parse_args(_with_preset_files(parser, arguments))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{message} (see --help)") from error
    values: dict[str, Any] = namespace.as_dict()
    values.pop("config", None)
    return values


def _with_preset_files(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    replaced = list(arguments)
    for i, argument in enumerate(replaced):
        if argument.startswith("--config="):
            replaced[i] = "--config=" + _checked(parser, argument.removeprefix("--config="))
        elif argument == "--config" and i + 1 < len(replaced):
            replaced[i + 1] = _checked(parser, replaced[i + 1])
    return replaced


def _checked(parser: jsonargparse.ArgumentParser, name: str) -> str:
    """Find a preset's file and refuse keys that the parser does not know."""
    path = find_preset(name)
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    known = {action.dest for action in parser._actions}
    for key in content or {}:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{path} has the unknown key {key!r}{hint} (see --help)")
    return path
