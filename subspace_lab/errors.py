"""Errors that a user can mend: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import errno
import functools
import io
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """Bad input, told in one sentence: what is wrong, where, and what to do."""


NOT_WRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip


def exit_code_2_on_user_error(main: Callable[P, None]) -> Callable[P, None]:
    """Let a command line print a `UserError` as one sentence and exit with code 2.

    A file or folder that cannot be written is the user's to mend as well. What the console cannot
    show (an arrow, a letter of a run's name) is printed as an escape.
    """

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            print(
                f"error: {error.filename} cannot be written ({error.strerror}): give another place",
                file=sys.stderr,
            )
            sys.exit(2)

    return command


def check_counts(**counts: int | None) -> None:
    """Refuse counts below 1; None is what was not given.

    Raises:
        UserError: naming the first such option.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
