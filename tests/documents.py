"""The code blocks of README, CONTRIBUTING and docs: found, executed, parsed.

A block is Python, data (JSON or YAML), text (listings and formulas, not run), or else, indented
without a language, command lines.
"""

from __future__ import annotations

import argparse
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from subspace_lab.training import command_line

ROOT = Path(__file__).parents[1]
PAGES = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
]


@dataclass(frozen=True)
class Block:
    """A code block of a page, and the line on which it begins."""

    page: str
    line: int
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    """List the code blocks of a page in some languages; "commands" are the indented ones."""
    found = [
        Block(page, token.map[0] + 1, token.info or "commands", token.content)
        for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
        if token.type in ("fence", "code_block") and token.map
    ]
    return [block for block in found if block.language in languages or not languages]


def execute(page: str, given: Callable[[], dict[str, object]] = dict) -> dict[str, object]:
    """Run the Python blocks of a page in one namespace; give the names that they leave.

    Args:
        page: its path.
        given: makes what the page takes from its reader, anew for each block.
    """
    namespace: dict[str, object] = {}
    for block in blocks(page, "python"):
        namespace.update(given())
        lines = "\n" * block.line + block.content  # a traceback names the page's line
        exec(compile(lines, ROOT / page, "exec"), namespace)
    return namespace


def statements(block: Block) -> Iterator[list[str]]:
    """Split command lines into words; the head and end of a shell loop are left out."""
    for line in block.content.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] not in ("for", "done"):
            yield words


class Parsed(BaseException):
    """Raised in place of what a command does: the values that its parser has read."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


def parsed(module: str, arguments: list[str]) -> dict[str, Any]:
    """Give what `python -m MODULE` reads from a command line; nothing else of it runs.

    Raises:
        SystemExit: if the command line is refused.
    """

    read, read_training = argparse.ArgumentParser.parse_args, command_line.parse

    def parse(parser, chosen=None, namespace=None):
        raise Parsed(vars(read(parser, chosen, namespace)))

    def parse_training(parser, chosen):
        raise Parsed(read_training(parser, chosen))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(command_line, "parse", parse_training)
        patch.setattr(sys, "argv", [module, *arguments])
        for name in (module, f"{module}.__main__"):  # run anew, not the imported one
            patch.delitem(sys.modules, name, raising=False)
        try:
            runpy.run_module(module, run_name="__main__")
        except Parsed as answer:
            return answer.values
    return {}
