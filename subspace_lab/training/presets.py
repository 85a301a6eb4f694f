"""Presets: YAML files with fields of a run, found by name, which may build on other presets.

presets: [paper/defaults]     # optional: their fields, in order, later ones win
task: metamathqa              # the file's own fields win over theirs
rank: 64
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from subspace_lab.errors import UserError, did_you_mean

CONFIGS = Path(__file__).parent.parent / "configs"
PRESETS = "presets"
SWEEPS = "sweeps"
FOR_OTHER_COMMANDS = ("accelerate", SWEEPS)  # folders of CONFIGS without presets


def presets_in_full() -> dict[str, Path]:
    """List the shipped presets: name with its folder, such as `masks/step`, to file."""
    files = [
        file
        for file in sorted(CONFIGS.rglob("*.yaml"))
        if file.relative_to(CONFIGS).parts[0] not in FOR_OTHER_COMMANDS
    ]
    return {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in files}


def presets() -> dict[str, Path]:
    """List the shipped presets: name (also without its folder, where that is unique) to file."""
    full = presets_in_full()
    stems = [file.stem for file in full.values()]
    return full | {file.stem: file for file in full.values() if stems.count(file.stem) == 1}


def find_preset(name: str, named_in: Path | None = None) -> Path:
    """Find a preset by name, or a YAML file by path.

    Raises:
        UserError: if there is neither, or the name is that of a shipped sweep; names the file
            `named_in`, if it was named in one.
    """
    if (shipped := presets().get(name)) is not None:
        return shipped
    if Path(name).is_file():
        return Path(name)
    if (CONFIGS / SWEEPS / f"{name}.yaml").is_file():
        raise _is_a_sweep(name)
    where = f" (named in {named_in})" if named_in else ""
    known = ", ".join(sorted(presets()))
    raise UserError(f"there is no preset or file {name!r}{where}; the presets are: {known}")


def read_preset(
    name: str, known: Collection[str], built_on_it: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Read the fields of a preset, with those of the presets that it builds on.

    Args:
        name: of a shipped preset, or the path of a YAML file.
        known: the fields that there are.
        built_on_it: the files through which this one is read, outermost first.

    Raises:
        UserError: if a preset is missing, is not YAML, is a sweep file, has an unknown field or
            builds on itself.
    """
    path = find_preset(name, named_in=built_on_it[-1] if built_on_it else None)
    chain = (*built_on_it, path)
    if path in built_on_it:
        circle = " -> ".join(map(str, chain))
        raise UserError(f"a preset builds on itself ({circle}): remove one from its {PRESETS}")
    own = _read_file(path)
    if "grid" in own:
        raise _is_a_sweep(path)
    others = own.pop(PRESETS, None) or []
    _check_fields(path, own, known)
    fields: dict[str, Any] = {}
    for other in others if isinstance(others, list) else [others]:
        fields |= read_preset(str(other), known, chain)
    return fields | own


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content or {}, dict):
        raise UserError(f"{path} must hold `field: value` pairs")
    return content or {}


def _check_fields(path: Path, fields: Collection[str], known: Collection[str]) -> None:
    for key in fields:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise UserError(f"{path} has the unknown key {key!r}{hint} (see --help)")


def _is_a_sweep(name: str | Path) -> UserError:
    return UserError(
        f"{name} is a sweep, not a preset: train its runs with "
        f"`python -m subspace_lab.sweep --config {name} --out FOLDER`"
    )
