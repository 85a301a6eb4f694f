"""Files that are complete or absent: each is written beside its place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subspace_lab.errors import UserError

STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path for a file or folder; on success it takes the place of `path` in one rename.

    Raises:
        OSError: naming `path`, if the disk is full or a limit is reached, whichever library
            could not write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    except Exception as error:
        if (full := storage_error(error, path)) is not None:
            raise full from error
        raise
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)


def storage_error(error: Exception, path: Path) -> OSError | None:
    """Make the usual error of a full disk or a reached limit, naming the place.

    safetensors and pyarrow only quote the system's number in errors of their own, and torch only
    notices that a file is shorter than what it wrote.

    Args:
        error: what was raised.
        path: what was being written.

    Returns:
        The error to raise instead; None where `error` is another one, or names its place.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (quoted := re.search(r"(?:os error|errno) (\d+)", str(error), re.I)):
        number = int(quoted[1])
    if number in STORAGE_ERRORS:
        return OSError(number, os.strerror(number), str(path))
    if re.search(r"PytorchStreamWriter|inline_container.*unexpected pos", str(error)):
        return OSError(errno.EIO, "No space left, or file sizes are limited", str(path))
    return None


def write_utf8(path: Path, text: str) -> None:
    """Write a text, atomically."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, atomically; numbers that it cannot hold become null."""
    write_utf8(path, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Put None for numbers that JSON cannot hold (nan and infinities), however deep."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, atomically."""
    with replacing(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a parquet file, atomically."""
    with replacing(path) as unfinished:
        table.to_parquet(unfinished, index=False)


def read_json(path: Path) -> dict[str, Any]:
    """Read JSON.

    Raises:
        UserError: if the file is truncated or corrupt.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is truncated or corrupt ({error}): restore it or record the run again"
        ) from (error)
    return dict(content)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet file.

    Raises:
        UserError: if the file is truncated or corrupt.
    """
    try:
        return pd.read_parquet(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is truncated or corrupt: restore it, or delete it to continue without it"
        ) from (error)


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file for reading single tensors.

    Raises:
        UserError: if the file is truncated or malformed.
    """
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the chunk {path} is truncated or damaged ({error}): restore it, or delete it to "
            "analyse the run without its steps"
        ) from error
    with opened as tensors:
        yield tensors
