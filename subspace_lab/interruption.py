"""Being stopped: Ctrl-C, and the signals by which a scheduler or a closed terminal asks for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Never

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop; `exit_code` is a shell's for the signal, 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let each of these signals raise `Interrupted` in the main thread, as Ctrl-C does.

    Only the first one counts: whoever catches it has the time to write what must not be lost.
    A signal that is ignored (by nohup) or handled already (by a scheduler's library) stays so.
    """
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    handlers = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) in DEFAULTS}

    def interrupt(number: int, frame: FrameType | None) -> Never:
        for handled in handlers:
            signal.signal(handled, signal.SIG_IGN)
        raise Interrupted(number)

    for number in handlers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
