"""A JSON-lines file that caches slow results, each under a key of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from subspace_lab.errors import UserError


class CachedLines:
    """Results by their key, on disk as soon as they are appended, from several threads if need be.

    A run that was killed may leave half a line at the end: opening the file removes it.

    Args:
        path: the file; None keeps the results in memory only.

    Raises:
        UserError: if a line is damaged.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read(path)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                result = json.loads(line)
                self.results[result["key"]] = result
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(f"line {number} of {path} is damaged: delete that line") from error

    def append(self, result: dict[str, Any]) -> None:
        """Add a result and wait until the disk has it."""
        with self._lock:
            self.results[result["key"]] = result
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    os.fsync(file.fileno())


def content_key(*content: Any) -> str:
    """Name what a result depends on: 16 hex digits of the SHA-256 of its JSON."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
