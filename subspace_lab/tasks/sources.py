"""Where examples are read: a JSON or JSON-lines file under the data folder, or the hub.

Every example remembers its place, so that a malformed one is reported with its file and line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError


@dataclass(frozen=True)
class HubSet:
    """A set on the hub: its id, and the configuration or folder that holds it."""

    id: str
    config: str | None = None
    folder: str | None = None


@dataclass(frozen=True)
class StoredExample:
    """An example as it was stored, and where."""

    fields: Mapping[str, Any]
    where: str

    def text(self, field: str) -> str:
        """Give the text of a field.

        Raises:
            UserError: if the example has no such field, or it is not text.
        """
        value = self.fields.get(field)
        if not isinstance(value, str):
            raise self.error(f"needs a text field {field!r}; it has {', '.join(self.fields)}")
        return value

    def error(self, complaint: str) -> UserError:
        """Make the error that says what is wrong with this example, and where it is."""
        return UserError(f"{self.where}: the example {complaint}")


def read(file: str, hub: HubSet, *, split: str, data_dir: str | Path | None) -> list[StoredExample]:
    """Read a set from `data_dir/file` if a data folder is given, else from the hub.

    Raises:
        UserError: if the file or the hub's set is missing, or a line is not a JSON object.
    """
    if data_dir is None:
        return _read_hub(hub, split=split, file=file)
    path = Path(data_dir) / file
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: put the set there, or read {hub.id} from the hub instead of "
            "a data folder"
        )
    return read_file(path)


def read_file(path: Path) -> list[StoredExample]:
    """Read the objects of a `.json` array or of a `.jsonl` file.

    Raises:
        UserError: if the text is not UTF-8 or JSON, or an element is not an object; it names file
            and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from error
    places = _lines(path, text) if path.suffix == ".jsonl" else _elements(path, text)
    for value, where in places:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return [StoredExample(value, where) for value, where in places]


def _lines(path: Path, text: str) -> list[tuple[Any, str]]:
    values = []
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                values.append((json.loads(line), where))
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: this is not JSON ({error.msg})") from error
    return values


def _elements(path: Path, text: str) -> list[tuple[Any, str]]:
    """Parse an array element by element: `json.loads` forgets on which line each one starts."""
    decoder = json.JSONDecoder()
    position, line, values = _skip(text, 0, "["), 1, []
    line += text.count("\n", 0, position)
    while position < len(text) and text[position] != "]":
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {error.lineno}: not a JSON array ({error.msg})"
            ) from error
        values.append((value, f"{path}, line {line}"))
        after = _skip(text, end, ",")
        line += text.count("\n", position, after)
        position = after
    if not text.rstrip().endswith("]"):
        raise UserError(f"{path}, line {line}: the JSON array does not end with ']'")
    return values


def _skip(text: str, position: int, mark: str) -> int:
    """Step over white space and at most one `mark`."""
    while position < len(text) and text[position].isspace():
        position += 1
    position += text.startswith(mark, position)
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _read_hub(hub: HubSet, *, split: str, file: str) -> list[StoredExample]:
    import datasets

    try:
        rows = datasets.load_dataset(hub.id, hub.config, data_dir=hub.folder, split=split)
    except (OSError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the {split} split of {hub.id} could not be read from the hub ({first_line}): connect "
            f"to the hub, or give a data folder that holds {file}"
        ) from error
    name = "/".join(part for part in (hub.id, hub.config, hub.folder) if part)
    return [
        StoredExample(row, f"{name}, {split} example {number}")
        for number, row in enumerate(rows, 1)
    ]
