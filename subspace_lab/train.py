"""Train one adapter and record every step of it.

    python -m subspace_lab.train --config pocket --out runs/first
    python -m subspace_lab.train --config demo --config paper-code --keep_prob 0.7 --out runs/code
    accelerate launch -m subspace_lab.train --config demo --out runs/parallel

Presets are YAML files of the package, found by name, or files of your own, which may build on
others (`presets: [demo, paper-code]`); later ones win, and every field can be set by its own flag.
The run directory holds cores, masks, metrics and adapters; `python -m analyses.effective_rank --run
RUN` and its neighbors read it. The shipped presets and the tasks are listed below the options.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import Timeout

from subspace_lab import tasks
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.interruption import interruptible
from subspace_lab.recording.lock import run_lock
from subspace_lab.training.command_line import parse, training_parser
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.presets import presets_in_full


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line and train."""
    parser = training_parser(__doc__ or "")
    parser.usage = "python -m subspace_lab.train [--config PRESET]... [--FIELD VALUE]... --out OUT"
    parser.epilog = _presets_and_tasks()
    parser.add_argument("--out", required=True, type=str, help="the run directory to write")
    parser.add_argument(
        "--resume",
        type=bool,
        default=False,
        help="resume the run in --out; does nothing if it has finished",
    )
    values = parse(parser, sys.argv[1:])
    out, resume = Path(values.pop("out")), values.pop("resume")
    config = TrainConfig(**values)

    with interruptible(), _the_only_writer(out):
        from subspace_lab.training.trainer import train  # heavy: torch, transformers and peft

        diverged_at = train(config, out, resume=resume)
    if diverged_at is not None:
        print(
            f"warning: {out} has diverged: after step {diverged_at} its weights are not finite",
            file=sys.stderr,
        )
        sys.exit(1)


def _presets_and_tasks() -> str:
    lists = {
        "presets, for --config (without the folder, where the rest is unique)": presets_in_full(),
        "tasks, for --task (several joined by +, or a .jsonl file of your own)": tasks.names(),
    }
    return "\n\n".join(f"{title}:\n{_wrapped(names)}" for title, names in lists.items())


def _wrapped(names: Iterable[str]) -> str:
    lines = textwrap.wrap(", ".join(names), 96, break_on_hyphens=False)
    return "\n".join(f"  {line}" for line in lines)


@contextlib.contextmanager
def _the_only_writer(out: Path) -> Iterator[None]:
    """Hold the run's lock in the first of the processes that train it together."""
    if os.environ.get("RANK", "0") != "0":  # set by accelerate launch and torchrun
        yield
        return
    try:
        held = run_lock(out).acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is training {out}: wait for it, or choose another --out"
        ) from None
    with held:
        yield


if __name__ == "__main__":
    main()
