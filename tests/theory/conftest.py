"""The `deviation` fixture, and the table of docs/theory.md that it fills.

    def test_coverage_time(deviation):
        deviation("T1: coverage time, sum over t", coverage_time, abs(found - true), 1e-12)

asserts `value <= tolerance` and keeps the row. A statement opens with its number (`T1: `); a test
with parameters gives one row per statement, the one with the largest deviation. Where the test is
a Monte Carlo one the value is in standard errors, and the statement says so.

`python -m pytest tests/theory --theory-table docs/theory.md` rewrites the table between the two
markers of that file from the tests that ran, and leaves the prose alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from subspace_lab.theory.mask_moments import MaskMoments
from subspace_lab.theory.regularizer import expected_squared_loss

START, END = "<!-- theory table: start -->", "<!-- theory table: end -->"
HEADER = (
    "| | statement | function | test | largest deviation | tolerance |\n|---|---|---|---|---|---|"
)


class Row(NamedTuple):
    statement: str
    function: str
    test: str
    value: float
    tolerance: float


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--theory-table",
        type=Path,
        metavar="FILE",
        help="rewrite the table of theorems between the markers of this Markdown file",
    )


@pytest.fixture
def deviation(request: pytest.FixtureRequest) -> Callable[[str, object, float, float], None]:
    """Assert `value <= tolerance`, and keep the row for the table."""

    def record(statement: str, function: object, value: float, tolerance: float) -> None:
        assert re.match(r"T\d+: ", statement), f"{statement!r} does not open with its T-number"
        value, tolerance = float(value), float(tolerance)
        name = f"{function.__module__}.{function.__qualname__}".removeprefix("subspace_lab.")
        test = f"{request.path.name}::{request.node.originalname}"
        # A report carries its test's properties from an xdist worker to the controller.
        request.node.user_properties.append(("theory", [statement, name, test, value, tolerance]))
        assert value <= tolerance, f"{statement}: deviation {value:.3e} > tolerance {tolerance:.1e}"

    return record


@pytest.fixture
def minimize_masked_loss() -> Callable[..., tuple[Tensor, Tensor]]:
    """Minimise the exact expected loss over (B, A) by BFGS: the independent route to an optimum."""

    def minimise(
        X: Tensor, Y: Tensor, law: MaskMoments, *, scaling: float, rescale: float, starts: int = 2
    ) -> tuple[Tensor, Tensor]:
        m, n, r = len(Y), len(X), len(law.mean)

        def factors(vector: np.ndarray) -> tuple[Tensor, Tensor]:
            flat = torch.as_tensor(vector)
            return flat[: m * r].reshape(m, r), flat[m * r :].reshape(r, n)

        def loss(vector: np.ndarray) -> tuple[float, np.ndarray]:
            B, A = (factor.clone().requires_grad_() for factor in factors(vector))
            total = expected_squared_loss(B, A, X, Y, law, scaling=scaling, rescale=rescale).total
            total.backward()
            return total.item(), torch.cat([B.grad.flatten(), A.grad.flatten()]).numpy()

        options = {"gtol": 1e-10}
        runs = [
            optimize.minimize(loss, start, jac=True, method="BFGS", options=options)
            for start in np.random.default_rng(0).normal(size=(starts, (m + n) * r))
        ]
        return factors(min(runs, key=lambda run: run.fun).x)

    return minimise


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    path = config.getoption("--theory-table", default=None)
    if path is None:
        return
    if exitstatus != pytest.ExitCode.OK:
        terminalreporter.write_line(f"{path} left alone: not every test passed")
        return
    rows = [
        Row(*values)
        for report in terminalreporter.getreports("passed")
        for key, values in report.user_properties
        if key == "theory"
    ]
    path.write_text(replace_table(path.read_text(), rows))
    terminalreporter.write_line(f"{path}: {len(rows)} deviations in the table")


def replace_table(text: str, rows: list[Row]) -> str:
    """Put the table of `rows` between the markers of `text`."""
    head, _, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    if not end:
        raise pytest.UsageError(f"the file needs the lines {START} and {END}")
    largest: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        kept = largest.setdefault(row[:3], row)
        if row.value > kept.value:
            largest[row[:3]] = row
    lines = [_line(row) for row in sorted(largest.values(), key=_order)]
    return "\n".join([head + START, HEADER, *lines, END + tail])


def _order(row: Row) -> tuple[int, str, str]:
    number, _, _ = row.statement.partition(":")
    return int(number.removeprefix("T")), row.function, row.statement


def _line(row: Row) -> str:
    number, _, statement = row.statement.partition(":")
    statement = statement.strip().replace("|", "\\|")
    return (
        f"| {number} | {statement} | `{row.function}` | `{row.test}` "
        f"| {row.value:.0e} | {row.tolerance:.0e} |"
    )
