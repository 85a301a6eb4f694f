from __future__ import annotations

import sys

import pandas as pd

from analyses import effective_rank
from benchmarks import audit
from subspace_lab.runs.run import Run


def test_the_adapter_opens_with_every_projection(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(audit, "PROJECTIONS", {"mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24)})
    audit.write_adapter(tmp_path / "adapter", layers=2, rank=4)
    table: pd.DataFrame = effective_rank.compute(Run(tmp_path / "adapter"), measures=["numerical"])
    assert set(table["projection"]) == {"up_proj", "down_proj"} and set(table["value"]) == {4}
    assert table["module"].nunique() == 4


def test_commands_take_turns_and_are_compared() -> None:
    quick, slow = ([sys.executable, "-c", f"import time; time.sleep({s})"] for s in (0, 0.5))
    result = audit.compare({"quick": quick, "slow": slow}, busy=1, repeats=1)
    assert result["slow"]["seconds"] > 0.4
    assert result["ratio"] < 1
