"""Errors that a user can fix: one sentence, exit code 2, no traceback.

A message names a setting in backticks, "`batch_size` must be at least 1": in a notebook that is the
argument's name, and a command prints it as its flag, --batch_size.
"""

from __future__ import annotations

import difflib
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec

P = ParamSpec("P")


SETTING = re.compile(r"`([a-z]\w*)`")


class UserError(Exception):
    """Bad input, described in one sentence: what is wrong, where, and what to do."""


def with_flags(message: str) -> str:
    """Write the settings that a message names in backticks as flags of a command.

    >>> with_flags("`batch_size` must be at least 1, not 0")
    '--batch_size must be at least 1, not 0'
    """
    return SETTING.sub(r"--\1", message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to a mistyped one, as a part of a message; empty if none is.

    >>> did_you_mean("effective_rnk", ["effective_rank", "rank_curve"])
    ", did you mean 'effective_rank'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


NOT_WRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO,
)  # fmt: skip


def exit_code_2_on_user_error(main: Callable[P, None]) -> Callable[P, None]:
    """Let a command line print a `UserError` as one sentence, with flags, and exit with code 2.

    A file or folder that cannot be written is the user's to fix as well. A command that is
    interrupted prints the notes of its `KeyboardInterrupt` and exits with a shell's code for it.
    What the console cannot show (an arrow, a letter of a run's name) is printed as an escape.
    """

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {with_flags(str(error))}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            place = error.filename or "a file"
            print(
                f"error: {place} cannot be written ({error.strerror}): choose another location",
                file=sys.stderr,
            )
            sys.exit(2)
        except KeyboardInterrupt as interrupt:
            notes = "\n".join(getattr(interrupt, "__notes__", ["interrupted"]))
            print(with_flags(notes), file=sys.stderr)
            sys.exit(getattr(interrupt, "exit_code", 130))

    return command


def check_counts(minimum: int = 1, /, **counts: int | None) -> None:
    """Refuse counts below a minimum; None is what was not given.

    Raises:
        UserError: naming the first such setting.
    """
    for name, value in counts.items():
        if value is not None and value < minimum:
            raise UserError(f"`{name}` must be at least {minimum}, not {value}")
