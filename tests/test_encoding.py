"""Text files are UTF-8 whatever the locale."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("subspace_lab", "analyses") for path in (REPOSITORY / room).rglob("*.py")
)

READERS = """
import sys
from pathlib import Path
from subspace_lab import files
from subspace_lab.adapters.methods import read_peft_fields
from subspace_lab.evaluation.mt_bench.questions import _read_lines
from subspace_lab.sweeping.grid import _read
from subspace_lab.training.presets import read_preset

folder = Path(sys.argv[1])
files.write_json(folder / "written.json", {"name": "größe"})
names = [
    files.read_json(folder / "written.json")["name"],
    files.read_json(folder / "a.json")["name"],
    read_preset(str(folder / "preset.yaml"), {"name"})["name"],
    read_peft_fields(folder / "a.json")["name"],
    _read(folder / "sweep.yaml")["fields"]["name"],
    _read_lines(folder / "a.jsonl")[0]["name"],
]
assert names == ["größe"] * len(names), names
"""


def test_files_are_read_and_written_in_the_c_locale(tmp_path) -> None:
    content = '{"name": "größe"}\n'
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "preset.yaml").write_text("name: größe\n", encoding="utf-8")
    sweep = "fields: {name: größe}\ngrid: {seed: [0]}\n"
    (tmp_path / "sweep.yaml").write_text(sweep, encoding="utf-8")
    program = tmp_path / "readers.py"
    program.write_text(READERS, encoding="utf-8")
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, program, tmp_path], env=plain, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_text_file_is_opened_in_the_locale_s_encoding(path) -> None:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and opens_text(call):
            assert any(word.arg == "encoding" for word in call.keywords), f"line {call.lineno}"


def opens_text(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name == "os.open":
        return False
    method = name.rpartition(".")[2]
    binary = (
        any("b" in ast.literal_eval(mode) for mode in modes(call)) if method == "open" else False
    )
    return method in ("open", "read_text", "write_text") and not binary


def modes(call: ast.Call) -> list[ast.expr]:
    strings = (arg for arg in call.args if isinstance(arg, ast.Constant))
    return [
        arg for arg in strings if isinstance(arg.value, str) and set(arg.value) <= set("rwabx+")
    ]
