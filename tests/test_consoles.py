"""Every command prints on consoles that are not UTF-8; what they cannot show is escaped."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
import sys

import pytest
from tqdm import tqdm

import analyses
import subspace_lab
from analyses import __main__ as analyze
from analyses.kit import run_analysis
from subspace_lab import __main__ as subspace_lab_command
from subspace_lab.errors import UserError, exit_code_2_on_user_error


def shown(text, printed):
    return text in printed or text.encode("ascii", "backslashreplace").decode() in printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_output_errors_and_progress_bars(encoding, monkeypatch):
    @exit_code_2_on_user_error
    def command():
        print("2.1 → 0.5 ± 0.1 of lauf-ü")
        for _ in tqdm(range(2), desc="lauf-→"):
            pass
        raise UserError("there is no run lauf-→")

    # Strict streams, as Python opens them; put in place here, since pytest has its own in fixtures.
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as raised:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        command()
    assert raised.value.code == 2
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert "2.1" in out and "0.5" in out
    assert ("→" in out) == (encoding == "utf-8")
    assert shown("error: there is no run lauf-→", err)
    assert shown("lauf-→: 100%", err)


def commands():
    """List the modules that are commands: those with a `main` of their own."""
    for package in (subspace_lab, analyses):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Both of these run inside the checker's sandbox; an analysis's __main__ runs at once.
            if found.name.rpartition(".")[2] in ("solution_runner", "closed_root", "__main__"):
                continue
            module = importlib.import_module(found.name)
            main = getattr(module, "main", None)
            if main is not None and inspect.getmodule(main) is module:
                yield found.name, main


def test_every_command_is_wrapped():
    found = dict(commands()) | {"analyses.kit": run_analysis}  # that of each ANALYSIS
    found |= {module.__name__: module.main for module in (analyze, subspace_lab_command)}
    assert found.keys() >= {"subspace_lab.train", "subspace_lab.evaluate", "subspace_lab.sweep"}
    bare = [name for name, main in found.items() if not hasattr(main, "__wrapped__")]
    assert not bare
