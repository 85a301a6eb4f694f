"""Every code block of README, CONTRIBUTING and docs: Python runs, command lines are accepted."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import TrainingArguments

from subspace_lab import tasks
from subspace_lab.__main__ import MODULES
from subspace_lab.errors import UserError
from subspace_lab.evaluation.by_task import LM_EVAL
from subspace_lab.runs.run import Run
from subspace_lab.sweeping.grid import read_sweep
from subspace_lab.theory.mask_law import LAWS
from subspace_lab.training.command_line import parse, training_parser
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.presets import CONFIGS
from subspace_lab.training.trainer import train
from tests.documents import PAGES, ROOT, Block, blocks, execute, parsed, statements
from tests.tiny import batch, tiny_lora

LANGUAGES = {"python", "commands", "json", "yaml", "text"}
COMMANDS = [block for page in PAGES for block in blocks(page, "commands")]
PYTHON = ("python", ".venv/bin/python")
MADE_ON_THE_PAGE = {"analyses.condition_number"}
SHIPPED_SWEEPS = {path.name for path in (CONFIGS / "sweeps").glob("*.yaml")}
SCORED_ELSEWHERE = ("humaneval", "mbpp", "mt_bench")
EXECUTED_IN = {  # tests that run a page's Python and say what comes out
    "docs/how-to/new-analysis.md": "tests/analyses/test_how_to.py",
    "docs/how-to/figures.md": "tests/analyses/test_how_to.py",
    "docs/how-to/your-own-loop.md": "tests/test_how_to_pages.py",
    "docs/how-to/live-tracking.md": "tests/test_how_to_pages.py",
}
EXECUTED_HERE = [page for page in PAGES if blocks(page, "python") and page not in EXECUTED_IN]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> Path:
    """Give the run of the README's first training command, of 12 steps."""
    out = tmp_path_factory.mktemp("runs") / "first"
    chosen = shlex.split("--config pocket --config step --steps 12 --train_size 96 --eval_size 8")
    train(TrainConfig(**parse(training_parser(""), chosen)), out)
    return out


@pytest.fixture
def folder(first_run, tmp_path, monkeypatch) -> Iterator[Path]:
    """Work in an empty folder with runs/first, where laws that a page adds are forgotten."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(first_run)
    monkeypatch.chdir(tmp_path)
    known = dict(LAWS)
    yield tmp_path
    LAWS.clear()
    LAWS.update(known)


def readers_names(page: str) -> dict[str, object]:
    """Give what a page takes from its reader: a model, data, a run, a table."""
    if page == "README.md":
        peft_model = tiny_lora().train()
        optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], 1e-3)
        rows = [{"input_ids": [1, 2, 3, t], "labels": [1, 2, 3, t]} for t in range(16)]
        arguments = TrainingArguments(
            "trainer", max_steps=10, report_to="none", save_strategy="no", disable_tqdm=True
        )
        return {
            "peft_model": peft_model, "optimizer": optimizer, "batches": [batch()] * 2,
            "arguments": arguments, "examples": rows,
        }  # fmt: skip
    if page == "docs/masks.md":
        return {"run": Run("runs/first"), "peft_model": tiny_lora(rank=16).train()}
    if page == "docs/results/README.md":
        runs = ["method=lora,seed=0", "method=lora,seed=1", "preset=paper-eq2,seed=0",
                "preset=paper-eq2,seed=1"]  # fmt: skip
        scored = [("full", 1.0), ("scaled", 0.5)]
        rows = [(run, *at, float(i)) for i, run in enumerate(runs) for at in scored]
        out = Path("runs/smollm2-demo-ensembles")
        out.mkdir()
        table = pd.DataFrame(rows, columns=["run", "predictor", "scale", "loss"])
        table.to_parquet(out / "ensemble_vs_single.parquet")
    return {}


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_of_a_known_kind(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_each_page_of_python_is_executed():
    for page, test in EXECUTED_IN.items():
        assert blocks(page, "python")
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", EXECUTED_HERE)
def test_python_runs(page, folder):
    if page == "docs/how-to/trl.md":
        pytest.importorskip("trl", reason="needs trl")
    execute(page, lambda: readers_names(page))


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_command_lines_are_accepted(block, folder):
    for data in blocks(block.page, "yaml"):
        write(data)
    for words in statements(block):
        check(words)


def test_data_of_ones_own_are_a_task(tmp_path):
    rows = [block.content for block in blocks("docs/how-to/own-data.md", "json")]
    (tmp_path / "mine.jsonl").write_text("".join(rows), encoding="utf-8")
    splits = ("train+validation", "test")
    found = [e for split in splits for e in tasks.load(str(tmp_path / "mine.jsonl"), split)]
    assert len(found) == len("".join(rows).splitlines())
    for example in found:
        assert tasks.score(example, example.response) == 1


@pytest.mark.parametrize("page", PAGES)
def test_json_is_valid(page):
    for block in blocks(page, "json"):
        for line in block.content.splitlines():
            assert json.loads(line)


def write(block: Block) -> None:
    """Write a YAML block into the file that its first line names."""
    (name,) = re.findall(r"^# (\S+\.yaml)\n", block.content)
    assert yaml.safe_load(block.content)
    Path(name).write_text(block.content, encoding="utf-8")


def check(words: Sequence[str]) -> None:
    """Refuse a command line that its program would refuse, or that names what there is not."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), words
    elif program == "subspace-lab" and rest[0] == "analyze" and rest[1:]:
        check_module(f"analyses.{rest[1]}", rest[2:])
    elif program == "subspace-lab":
        check_module(MODULES[rest[0]], rest[1:])
    elif program == "accelerate":
        assert rest[0] == "launch"
        launched = launch_command_parser().parse_args(rest[1:])
        assert launched.module and (ROOT / launched.config_file).is_file()
        check_module(launched.training_script, launched.training_script_args)
    elif program in PYTHON:
        assert rest[0] == "-m"
        check_module(rest[1], rest[2:])
    elif program == "pip":
        assert rest[0] == "install"
        for name in re.findall(r"subspace_lab\[(\w+)\]", " ".join(rest)):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert name in project["optional-dependencies"]
    else:
        scripts = {script.name for script in metadata.entry_points(group="console_scripts")}
        assert Path(program).name in scripts, words


def check_module(module: str, arguments: list[str]) -> None:
    """Parse the arguments of a module of this project, and look up what they name."""
    if module in MADE_ON_THE_PAGE:
        module = "analyses.effective_rank"  # all analyses share a parser
    if module == "pytest":
        assert all((ROOT / word).exists() for word in arguments if not word.startswith("-"))
        return
    if arguments == ["--help"]:
        assert find_spec(module), module
        return
    values = parsed(module, arguments)
    if module == "subspace_lab.train":
        config = {k: v for k, v in values.items() if k not in ("out", "resume")}
        check_tasks(TrainConfig(**config).task)
    elif module == "subspace_lab.evaluate":
        check_tasks(*values["tasks"])
    elif module == "subspace_lab.sweep":
        check_sweep(values["config"])


def check_sweep(name: str) -> None:
    """Refuse a sweep that there is not, or a wrong file; shipped ones have their own tests."""
    if f"{name}.yaml" not in SHIPPED_SWEEPS:
        read_sweep(name)


def check_tasks(*names: str) -> None:
    """Refuse a task that there is not."""
    for name in names:
        for part in name.split("+"):
            if part not in SCORED_ELSEWHERE and not part.startswith(LM_EVAL):
                tasks.check_name(part)


@pytest.mark.parametrize(
    "line",
    [
        "make tests",
        "python -m analyses.effective_rnk --run runs/first",
        "python -m analyses.effective_rank --runz runs/first",
        "python -m subspace_lab.train --config pocket --config stp --out runs/first",
        "python -m subspace_lab.train --config pocket --keep_prob high --out runs/first",
        "python -m subspace_lab.train --config pocket --task gms8k --out runs/first",
        "python -m subspace_lab.evaluate --run runs/first --tasks gms8k",
        "python -m subspace_lab.evaluate --run runs/first --tasks gsm8k --metrics exact_match",
        "python -m subspace_lab.sweep --config method --out runs/methods",
        "accelerate launch --config_file none.yaml -m subspace_lab.train --out runs/first",
        "subspace-lab trian --config pocket --out runs/first",
        'pip install "subspace_lab[slrum]"',
        "sbtach job.sh",
    ],
)
def test_a_wrong_command_line_is_refused(line, folder):
    wrong = Block("page", 1, "commands", line)
    with pytest.raises((AssertionError, ImportError, KeyError, SystemExit, UserError)):
        for words in statements(wrong):
            check(words)
