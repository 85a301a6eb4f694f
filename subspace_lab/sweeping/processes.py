"""Processes that train one run each, forked from one that has imported what training needs.

Importing torch, transformers and peft takes longer than a short run, and so is done once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from subspace_lab import train

PRELOADED = [
    "subspace_lab.training.trainer",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "peft",
    "datasets",
]


def start(command: Sequence[str], log: Path) -> BaseProcess:
    """Start a command; one of this Python's `-m subspace_lab.train` is forked, not launched anew.

    Args:
        command: the command.
        log: what it prints is added to this file.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED if _is_training(command) else [])
    process = context.Process(target=_become, args=(list(command), log))
    process.start()
    return process


def stop(processes: Sequence[BaseProcess]) -> None:
    """Interrupt processes, with what they have launched, and let them write their records."""
    for process in processes:
        if process.pid is not None and process.is_alive():
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:  # it does not have a group of its own yet
                process.terminate()
    for process in processes:
        process.join()


def _is_training(command: Sequence[str]) -> bool:
    return list(command[:3]) == [sys.executable, "-m", train.__name__]


def _become(command: list[str], log: Path) -> None:
    """Be the command: in a process group of its own, and with its output in the log."""
    os.setpgid(0, 0)
    with log.open("a", encoding="utf-8") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    if not _is_training(command):
        os.execvp(command[0], command)
    sys.argv = command[2:]
    train.main()
