"""The rooms of the code import downwards only, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [  # a room imports rooms of lower floors only; a new room needs a floor here
    "errors",
    "files interruption local_paths module_names provenance schedule",
    "linalg module_table stats",
    "calibration figures models peft_files tasks teacher_forcing theory",
    "adapters runs",
    "configurations evaluation recording",
    "training",
    "train subspace_lab",  # the command; the __init__ that names the public classes
    "sweeping",  # trains by the command, in processes forked from its own
    "convert evaluate sweep analyses",
    "experiments",
    "__main__",  # `subspace-lab`, which hands over to the commands
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
ONLY = {"linalg": set[str](), "theory": {"errors", "linalg"}, "figures": {"errors", "stats"}}
NEVER = {
    "analyses": {"recording", "training", "sweeping"},
    "training": {"evaluation"},
}

Graph = Mapping[str, set[str]]


def import_graph(root: Path) -> Graph:
    """Which file imports which, by module name; imports inside functions count as well."""
    tops = ("subspace_lab", "analyses", "experiments")
    paths = [path for top in tops for path in (root / top).rglob("*.py")]
    trees = {path.relative_to(root).with_suffix("").parts: ast.parse(path.read_text("utf-8"))
             for path in paths}  # fmt: skip
    modules = {".".join(parts).removesuffix(".__init__") for parts in trees}
    graph: dict[str, set[str]] = {}
    for parts, tree in trees.items():
        module = ".".join(parts).removesuffix(".__init__")
        imported = {name for node in ast.walk(tree) for name in names(node, parts[:-1])}
        whole = {name if name in modules else name.rpartition(".")[0] for name in imported}
        graph[module] = (whole & modules) - {module}
    return graph


def names(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Full names of what an import statement of a file in a package imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else ()
        source = ".".join([*above, *filter(None, [node.module])])
        yield from (f"{source}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The part of the code that a module belongs to."""
    top, *inner = module.split(".")
    return top if top != "subspace_lab" or not inner else inner[0]


def wrong_directions(graph: Graph) -> list[str]:
    """The imports between rooms that do not lead downwards, or that are never allowed."""
    rooms = {room(module) for module in graph}
    wrong = [f"the room {name} has no floor" for name in sorted(rooms - FLOOR.keys())]
    for module, imported in graph.items():
        for name in sorted(imported):
            here, there = room(module), room(name)
            allowed = here == there or (
                FLOOR.get(there, 0) < FLOOR.get(here, len(FLOORS))
                and there in ONLY.get(here, {there})
                and there not in NEVER.get(here, ())
            )
            if not allowed:
                wrong.append(f"{module} imports {name}")
    return wrong


def packages(graph: Graph) -> Graph:
    """The graph of packages: rooms, and in `analyses` its own packages and modules."""
    merged: dict[str, set[str]] = {}
    for module, imported in graph.items():
        package = ".".join(module.split(".")[:2])
        merged.setdefault(package, set()).update(".".join(name.split(".")[:2]) for name in imported)
    return {package: imported - {package} for package, imported in merged.items()}


def circle(graph: Graph) -> list[str]:
    """One circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_rooms_import_downwards():
    assert wrong_directions(import_graph(ROOT)) == []


@pytest.mark.parametrize("level", [lambda graph: graph, packages], ids=["files", "packages"])
def test_nothing_imports_in_a_circle(level):
    assert circle(level(import_graph(ROOT))) == []


PLANTED = [
    ("subspace_lab/linalg/a.py", "from subspace_lab.runs.run import Run"),
    ("subspace_lab/theory/a.py", "def f():\n    from ..models import find_base"),
    ("subspace_lab/adapters/a.py", "import subspace_lab.runs.run"),
    ("analyses/a.py", "from subspace_lab.training import trainer"),
    ("subspace_lab/training/a.py", "from analyses import kit"),
    ("subspace_lab/figures/a.py", "from subspace_lab import runs"),
]


@pytest.mark.parametrize(("file", "statement"), PLANTED)
def test_a_planted_import_upwards_is_found(tmp_path, file, statement):
    for name in ("runs/run.py", "runs/__init__.py", "models.py", "training/trainer.py"):
        write(tmp_path / "subspace_lab" / name)
    write(tmp_path / "analyses/kit.py")
    assert wrong_directions(import_graph(tmp_path)) == []
    write(tmp_path / file, statement)
    (found,) = wrong_directions(import_graph(tmp_path))
    assert found.startswith(file.replace("/", ".").removesuffix(".py"))


def test_a_planted_circle_is_found(tmp_path):
    write(tmp_path / "analyses/kit/a.py", "def f():\n    from analyses.report import b")
    write(tmp_path / "analyses/report/b.py", "from ..kit import c")
    write(tmp_path / "analyses/kit/c.py")
    graph = import_graph(tmp_path)
    assert circle(graph) == [] and set(circle(packages(graph))) == {
        "analyses.kit",
        "analyses.report",
    }
    write(tmp_path / "analyses/kit/c.py", "from .a import f")
    assert set(circle(import_graph(tmp_path))) == {
        "analyses.kit.a",
        "analyses.report.b",
        "analyses.kit.c",
    }


def write(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n", encoding="utf-8")
