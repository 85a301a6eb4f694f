"""`subspace-lab` and `python -m analyses`: commands by name, and the nearest for a typo."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from analyses import __main__ as analyze
from analyses.registry import COMMANDS, all_analyses, find_analysis
from subspace_lab import __main__ as command
from subspace_lab import tasks, train
from subspace_lab.training.presets import presets_in_full

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
SLOW = {"torch", "pandas", "matplotlib", "jsonargparse", "transformers", "peft"}


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; give its exit code and what it printed."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return call


def test_the_console_command_is_this_module():
    (name, value) = next(iter(PROJECT["scripts"].items()))
    found = metadata.EntryPoint(name, value, "console_scripts").load()
    assert (name, found) == ("subspace-lab", command.main)


def test_it_tells_its_version(call):
    assert call(command.main, "--version") == (0, f"{PROJECT['version']}\n", "")


@pytest.mark.parametrize("name", ["train", "evaluate", "sweep", "convert"])
def test_a_command_is_that_of_its_module(call, name):
    code, out, _ = call(command.main, name, "--help")
    assert code == 0 and out.startswith(f"usage: python -m subspace_lab.{name} ")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(call, arguments):
    code, out, _ = call(command.main, *arguments)
    assert code == 0
    assert set(re.findall(r"^ {4}subspace-lab (\w+)", out, re.MULTILINE)) == set(command.MODULES)


def test_what_is_not_chosen_is_not_imported():
    program = (
        "import sys; from subspace_lab.__main__ import main\n"
        "for words in (['--help'], ['--version'], ['sweep', '--help']):\n"
        "    sys.argv = ['subspace-lab', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"print('loaded', {SLOW} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("loaded set()\n"), done


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (command.main, ["trian"], "no command 'trian', did you mean 'train'? (see subspace-lab"),
        (command.main, ["qqq"], "no command 'qqq' (see subspace-lab --help)"),
        (command.main, ["analyze", "effectiv_rank"], "'effectiv_rank', did you mean 'effective_"),
        (analyze.main, ["effective_rnk"], "no analysis 'effective_rnk', did you mean 'effective_r"),
        (analyze.main, ["effective-rank"], "did you mean 'effective_rank'?"),
        (analyze.main, ["wach"], "did you mean 'watch'?"),
        (analyze.main, ["kit"], "no analysis 'kit' (`python -m analyses` lists them)"),
        (analyze.main, ["kit.command"], "no analysis 'kit.command'"),
    ],
)
def test_a_mistyped_name_suggests_the_nearest(call, main, arguments, said):
    code, out, err = call(main, *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: ") and said in err


@pytest.mark.parametrize(
    ("main", "arguments"),
    [(analyze.main, []), (analyze.main, ["--help"]), (command.main, ["analyze"])],
)
def test_the_analyses_are_listed_with_their_questions(call, main, arguments):
    code, out, _ = call(main, *arguments)
    listed = re.findall(r"^  (\w+) {2,}(\S.*)$", out, re.MULTILINE)
    assert code == 0
    questions = [(name, analysis.question) for name, analysis in all_analyses().items()]
    assert listed == [*questions, *COMMANDS.items()]


def test_an_analysis_runs_by_its_name(call, tmp_path):
    code, out, _ = call(analyze.main, "rank_curve", "--help")
    assert code == 0 and out.startswith("usage: python -m analyses.rank_curve ")
    code, _, err = call(command.main, "analyze", "rank_curve", "--run", str(tmp_path / "none"))
    assert code == 2 and f"{tmp_path / 'none'} does not exist" in err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_what_is_not_an_analysis_runs_by_its_name_too(call, name, tmp_path):
    code, out, _ = call(command.main, "analyze", name, "--help")
    assert code == 0 and out.startswith(f"usage: python -m analyses.{name} ")
    code, _, err = call(command.main, "analyze", name, "--run", str(tmp_path / "none"))
    assert code == 2 and f"{tmp_path / 'none'} " in err and err.count("\n") == 1


def test_one_analysis_is_found_without_the_others(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("analyses.claims"):
            monkeypatch.delitem(sys.modules, name)
    assert find_analysis("effective_rank").name == "effective_rank"
    assert "analyses.claims" not in sys.modules


def test_the_help_of_training_keeps_its_lines_and_lists_presets_and_tasks(call):
    code, out, _ = call(train.main, "--help")
    examples = [line for line in (train.__doc__ or "").splitlines() if line.startswith("    ")]
    assert code == 0 and len(examples) == 3 and set(examples) <= set(out.splitlines())
    for title, names in (("presets", presets_in_full()), ("tasks", tasks.names())):
        (block,) = re.findall(rf"^{title}, for --\w+ .*:\n((?:  .*\n?)+)", out, re.MULTILINE)
        assert [name.strip() for name in block.split(",")] == list(names)
