"""Give this process a root folder of its own, then become another program: see `sandbox`.

    unshare --user --map-root-user --mount --pid ... python -I closed_root.py PATH... -- COMMAND...

Started in new namespaces and in an empty folder, which becomes the root. The paths appear in it
read-only, with a fresh /proc, a few devices and empty writable folders /tmp and /dev/shm. The
command then runs there without any capability, so it cannot undo this. Every step that fails ends
this process with an error.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

# Numbers of <sys/mount.h>, <linux/mount.h>, <linux/prctl.h> and of the system call (any processor).
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 4096, 16384
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
MOUNT_SETATTR = 442

DEVICES = ("null", "zero", "full", "random", "urandom")
WRITABLE = ("tmp", "dev/shm")
WRITABLE_OPTIONS = "size=256m"

libc = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """`struct mount_attr`."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


def main() -> None:
    """Build the root in the current folder, enter it, and run the command."""
    separator = sys.argv.index("--")
    paths, command = sys.argv[1:separator], sys.argv[separator + 1 :]
    root = Path.cwd()
    _mount("tmpfs", root, "tmpfs")
    for name in ("proc", *WRITABLE):
        (root / name).mkdir(parents=True, exist_ok=True)
    _mount("proc", root / "proc", "proc")
    for name in WRITABLE:  # before the paths, some of which may lie in there
        _mount("tmpfs", root / name, "tmpfs", MS_NOSUID | MS_NODEV, WRITABLE_OPTIONS)
    for path in (*paths, *(f"/dev/{device}" for device in DEVICES)):
        _bind(Path(path), root)
    _set_attributes(root, AT_RECURSIVE, set=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
    for name in WRITABLE:
        _set_attributes(root / name, 0, clear=MOUNT_ATTR_RDONLY)
    os.chroot(root)
    os.chdir("/tmp")
    _drop_capabilities()
    os.execv(command[0], command)


def _bind(path: Path, root: Path) -> None:
    target = root / path.relative_to("/")
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(path), target, "", MS_BIND | MS_REC)


def _mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    words = [word.encode() for word in (source, str(target), kind)]
    done = libc.mount(*words, ctypes.c_ulong(flags), options.encode())
    _check(done, f"mount {source} at {target}")


def _set_attributes(mount: Path, flags: int, **attributes: int) -> None:
    changes = MountAttributes(**attributes)
    done = libc.syscall(
        MOUNT_SETATTR, AT_FDCWD, str(mount).encode(), flags,
        ctypes.byref(changes), ctypes.c_size_t(ctypes.sizeof(changes)),
    )  # fmt: skip
    _check(done, f"change the mount {mount}")


def _drop_capabilities() -> None:
    """Give up all capabilities at the next exec, for this process and what it starts."""
    capability = 0
    while libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        _check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop a capability")
        capability += 1
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")


def _check(done: int, what: str) -> None:
    if done != 0:
        raise OSError(ctypes.get_errno(), f"cannot {what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
