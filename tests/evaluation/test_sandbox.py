"""What a generated program can and cannot reach; each probe is seen to work without the sandbox."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from subspace_lab.errors import UserError
from subspace_lab.evaluation import sandbox
from subspace_lab.evaluation.by_task import evaluation_of
from subspace_lab.evaluation.configuration import EvaluationConfig

KEY = "OPENAI_API_KEY=sk-of-the-test"


def python(confine: sandbox.Sandbox, code: str, **options: float) -> str:
    """What the code prints, run by Python in the sandbox."""
    done = sandbox.run(confine, [sys.executable, "-I", "-c", code], **{"seconds": 60.0, **options})
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def unique_duration() -> str:
    """An argument of `sleep` by which its process is found again."""
    return f"{600 + os.getpid()}.{time.time_ns() % 10**6:06d}"


def processes(argument: str) -> list[psutil.Process]:
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if argument in (process.info["cmdline"] or [])]


WORKS_HERE = {  # asked for apart from the code under test, so that a fault there is not skipped
    sandbox.bubblewrap: "bwrap --unshare-all --ro-bind / / --proc /proc true",
    sandbox.user_namespaces: "unshare --user --map-root-user --net --pid --mount-proc --fork true",
}


@pytest.fixture(params=WORKS_HERE, ids=lambda way: way.__name__)
def confine(request) -> sandbox.Sandbox:
    way: sandbox.Sandbox = request.param
    if subprocess.run(WORKS_HERE[way], shell=True, capture_output=True, check=False).returncode:
        pytest.skip(f"{way.__name__} does not work here")
    return way


Probe = Callable[[sandbox.Sandbox], bool]


@pytest.fixture
def writes(tmp_path) -> Probe:
    def probe(confine: sandbox.Sandbox) -> bool:
        new = tmp_path / "new"
        attempt = f"try: open({str(new)!r}, 'w').write('x')\nexcept OSError: pass"
        python(confine, attempt)
        written = new.exists()
        new.unlink(missing_ok=True)
        return written

    return probe


@pytest.fixture
def deletes(tmp_path) -> Probe:
    def probe(confine: sandbox.Sandbox) -> bool:
        file = tmp_path / "file"
        file.touch()
        python(confine, f"import os\ntry: os.remove({str(file)!r})\nexcept OSError: pass")
        return not file.exists()

    return probe


@pytest.fixture
def reads() -> Probe:
    """Read a file of the user's: this one, unless it lies among the system's or Python's own."""
    file = Path(__file__).resolve()
    if any(file.is_relative_to(path) for path in sandbox._visible()):
        pytest.skip("the tests lie in a folder that programs may read")

    def probe(confine: sandbox.Sandbox) -> bool:
        attempt = f"try: open({str(file)!r}).read(); print('read')\nexcept OSError: pass"
        return python(confine, attempt) == "read"

    return probe


@pytest.fixture
def changes_packages() -> Probe:
    """Leave a file among the packages of this interpreter, which the sandbox shows."""
    target = Path(sys.prefix) / f"left-by-a-test-{os.getpid()}"

    def probe(confine: sandbox.Sandbox) -> bool:
        attempt = f"try: open({str(target)!r}, 'w')\nexcept OSError: pass"
        python(confine, attempt)
        changed = target.exists()
        target.unlink(missing_ok=True)
        return changed

    return probe


@pytest.fixture
def connects() -> Iterator[Probe]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    def probe(confine: sandbox.Sandbox) -> bool:
        address = listener.getsockname()
        attempt = f"import socket\ntry: socket.create_connection({address})\nexcept OSError: pass"
        python(confine, attempt)
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    yield probe
    listener.close()


@pytest.fixture
def connects_to_a_unix_socket(tmp_path) -> Iterator[Probe]:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)

    def probe(confine: sandbox.Sandbox) -> bool:
        attempt = f"import socket\ntry: socket.socket(socket.AF_UNIX).connect({path!r})\n"
        python(confine, attempt + "except OSError: pass")
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    yield probe
    listener.close()


@pytest.fixture
def reads_the_key_of_a_process() -> Iterator[Probe]:
    name, value = KEY.split("=")
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)", KEY]
    holder = subprocess.Popen(sleep, env={**os.environ, name: value})

    def probe(confine: sandbox.Sandbox) -> bool:
        search = (
            "import glob\n"
            "for file in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
            "    try: content = open(file).read()\n"
            "    except OSError: continue\n"
            f"    if {KEY[::-1]!r}[::-1] in content: print('key')"  # not to find itself
        )
        return "key" in python(confine, search)

    yield probe
    holder.kill()
    holder.wait()


PROBES = [
    "reads",
    "writes",
    "deletes",
    "changes_packages",
    "connects",
    "connects_to_a_unix_socket",
    "reads_the_key_of_a_process",
]


@pytest.mark.parametrize("name", PROBES)
def test_nothing_outside_is_in_reach(confine, request, name) -> None:
    probe: Probe = request.getfixturevalue(name)
    assert probe(sandbox.unconfined), "the probe itself does not work"
    assert not probe(confine)


def sleeper(duration: str, *, wait: bool) -> str:
    """A program that starts a process in a session of its own, and may wait for it."""
    null = "stdin=-3, stdout=-3, stderr=-3"
    code = f"import subprocess\np = subprocess.Popen(['sleep', '{duration}'], "
    code += f"start_new_session=True, {null})\nprint('started')\n"
    return code + "p.wait()" * wait


def ended(duration: str) -> bool:
    patience = time.monotonic() + 60  # the kernel ends them soon after, not at once
    while processes(duration) and time.monotonic() < patience:
        time.sleep(0.02)
    return not processes(duration)


def test_a_program_leaves_no_process(confine) -> None:
    duration = unique_duration()
    assert python(sandbox.unconfined, sleeper(duration, wait=False)) == "started"
    (left,) = processes(duration)
    left.kill()
    left_by_none = unique_duration()
    assert python(confine, sleeper(left_by_none, wait=False)) == "started"
    assert ended(left_by_none)


def test_a_killed_program_leaves_no_process(confine) -> None:
    duration = unique_duration()
    with pytest.raises(subprocess.TimeoutExpired):
        python(confine, sleeper(duration, wait=True), seconds=1.0)
    assert ended(duration)


def test_a_program_has_a_folder_of_its_own_and_no_capability(confine) -> None:
    code = (
        "import os\nopen('mine', 'w').write('x')\n"
        "status = open('/proc/self/status').read()\n"
        "capabilities = [line.split()[1] for line in status.splitlines() if line[:3] == 'Cap']\n"
        "print(*os.listdir(), {int(value, 16) for value in capabilities})"
    )
    # Where the interpreter lies in /tmp, so does the way to it.
    ways = {Path(path).parts[2] for path in sandbox._visible() if path.startswith("/tmp/")}
    *names, capabilities = python(confine, code).split()
    assert set(names) - ways == {"mine"} and capabilities == "{0}"


def test_an_interpreter_in_the_working_folder_is_seen_and_read_only(confine, monkeypatch) -> None:
    """As of a project that was cloned into /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shutil.copytree(Path(sys.prefix) / "bin", f"{folder}/bin", symlinks=True)
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
        monkeypatch.setattr(sys, "prefix", folder)
        code = f"import os; print(os.access({folder!r}, os.W_OK))"
        done = sandbox.run(confine, [f"{folder}/bin/python", "-I", "-c", code], seconds=60)
    assert (done.returncode, done.stdout.strip()) == (0, b"False"), done.stderr


def test_a_sandbox_that_does_not_work_is_found_by_trying(monkeypatch, tmp_path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox.shutil, "which", {"bwrap": str(broken)}.get)
    with pytest.raises(UserError) as caught:
        sandbox.choose_sandbox()
    sentence = str(caught.value)
    assert "No permissions to create new namespace; unshare is not installed" in sentence
    assert "`unsafe_execution` true" in sentence
    assert sandbox.choose_sandbox(unsafe_execution=True) is sandbox.unconfined


def test_without_a_sandbox_the_command_asks_before_it_loads_anything(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda _: None)
    programs = evaluation_of("humaneval", EvaluationConfig(), run={}, folder=tmp_path)
    with pytest.raises(UserError, match="`unsafe_execution` true"):
        programs.check()


def test_where_a_sandbox_works_unsafe_execution_changes_nothing(confine) -> None:
    assert sandbox.choose_sandbox(unsafe_execution=True) is sandbox.choose_sandbox()
