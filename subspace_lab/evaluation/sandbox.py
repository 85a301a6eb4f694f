"""Where generated programs run: a process without network, keys, or any file but Python's own.

Inside, a program sees the folders of the interpreter and of the system's libraries, read-only, and
an empty folder /tmp in memory. It sees no process of this machine, so no environment of one either,
and whatever it leaves running ends with it. Bubblewrap sets this up where it is installed, else the
kernel's own user namespaces do (Linux 5.12 or newer, `unshare` of util-linux). Which of them works
is found by trying.

Not prevented: a program that takes processor time and memory until its time is over, and faults of
the kernel.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from subspace_lab.errors import UserError

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/etc/ld.so.cache",
    "/etc/alternatives",
)  # fmt: skip
WORKING_FOLDER = "/tmp"  # inside
CLOSED_ROOT = Path(__file__).with_name("closed_root.py")
TRIAL_SECONDS = 30.0

Sandbox = Callable[[Sequence[str]], list[str]]  # from a command to the command that confines it


def bubblewrap(command: Sequence[str]) -> list[str]:
    """The command inside bubblewrap (`bwrap`)."""
    bound = [word for path in _visible() for word in ("--ro-bind", path, path)]
    return [
        *(_installed("bwrap"), "--unshare-all", "--as-pid-1", "--die-with-parent"),
        *("--new-session", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"),
        # Before the interpreter's folders, which may lie in there.
        *("--tmpfs", WORKING_FOLDER, *bound, "--remount-ro", "/", "--chdir", WORKING_FOLDER),
        *("--", *command),
    ]


def user_namespaces(command: Sequence[str]) -> list[str]:
    """The command inside new namespaces, in a root folder of its own (see `closed_root`)."""
    return [
        *(_installed("unshare"), "--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts"),
        *("--pid", "--fork", "--", sys.executable, "-I", str(CLOSED_ROOT)),
        *(*_visible(), "--", *command),
    ]


def unconfined(command: Sequence[str]) -> list[str]:
    """The command as it is: it may write, delete, and read keys like the user who runs it."""
    return list(command)


def choose_sandbox(*, unsafe_execution: bool = False) -> Sandbox:
    """The first sandbox that works on this machine.

    Args:
        unsafe_execution: whether programs may run unconfined where none works.

    Raises:
        UserError: if none works and `unsafe_execution` is false.
    """
    reasons = []
    for sandbox in (bubblewrap, user_namespaces):
        try:
            trial = run(sandbox, [sys.executable, "-I", "-c", ""], seconds=TRIAL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(str(error))
            continue
        if trial.returncode == 0:
            return sandbox
        said = trial.stderr.decode(errors="replace").strip().splitlines()
        reasons.append(said[-1] if said else f"{trial.args[0]} ends with code {trial.returncode}")
    if unsafe_execution:
        return unconfined
    raise UserError(
        f"generated programs need a sandbox, and none works here ({'; '.join(reasons)}): install "
        "bubblewrap, or set `unsafe_execution` true in a container without keys or data of yours"
    )


def run(
    sandbox: Sandbox, command: Sequence[str], *, stdin: bytes = b"", seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in the sandbox, with an empty folder and an environment without keys.

    Raises:
        FileNotFoundError: if the sandbox's program is not installed.
        subprocess.TimeoutExpired: if it did not end in time; it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        own_folder = folder if sandbox is unconfined else WORKING_FOLDER
        words = sandbox(command)
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={
                "PATH": os.defpath,
                "HOME": own_folder,
                "TMPDIR": own_folder,
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(stdin, timeout=seconds)
        finally:
            _kill_group(process)
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and, as it leads a group of its own, what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _installed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise FileNotFoundError(f"{program} is not installed")
    return path


def _visible() -> list[str]:
    """What a program may read: the system's libraries, the interpreter and its packages."""
    interpreter = Path(sys.executable).resolve().parents[1]
    prefixes = (Path(sys.prefix), Path(sys.base_prefix), interpreter)
    paths = [Path(path) for path in SYSTEM] + [
        path for prefix in prefixes for path in (prefix, prefix.resolve())
    ]
    visible: list[Path] = []
    for path in paths:
        if path.exists() and not any(path.is_relative_to(parent) for parent in visible):
            visible.append(path)
    return [str(path) for path in visible]
