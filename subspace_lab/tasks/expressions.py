"""Compare two answers as mathematics with math-verify, in any thread.

math-verify stops what takes longer than its limit, such as 9^{9^{9^9}}, by a signal, which only
the main thread of a process can receive. Other threads therefore ask a process, which runs this
file: it reads what to compare from its input, one JSON array a line, and answers true or false.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import subprocess
import sys
import threading

LIMIT = 5
"""Seconds for each of three steps: reading either answer, and comparing them."""


def equal_expressions(answer: str, truth: str) -> bool:
    """Tell whether two expressions are equal; what takes longer than the limit is not."""
    if threading.current_thread() is threading.main_thread():
        return _compare(answer, truth, LIMIT)
    return _process().compare(answer, truth, LIMIT)


def _compare(answer: str, truth: str, limit: int) -> bool:
    from math_verify import parse, verify

    expected = parse(f"${truth}$", parsing_timeout=limit)
    given = parse(f"${answer}$", parsing_timeout=limit)
    return bool(verify(expected, given, timeout_seconds=limit))


class _Process:
    """A process that compares in its main thread, one pair at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # -P: math.py and code.py beside this file are not the standard library's.
        self._child = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        atexit.register(self._child.communicate)

    def compare(self, answer: str, truth: str, limit: int) -> bool:
        assert self._child.stdin is not None and self._child.stdout is not None
        with self._lock:
            print(json.dumps([answer, truth, limit]), file=self._child.stdin, flush=True)
            return bool(json.loads(self._child.stdout.readline()))


@functools.cache
def _process() -> _Process:
    return _Process()


def _serve() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            print(json.dumps(_compare(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
