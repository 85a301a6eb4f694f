"""The training command from outside: one sentence and exit code 2 on bad input."""

from __future__ import annotations

import pytest

from subspace_lab.runs.run import Run
from tests.training.conftest import TINY, command


def test_command_trains(base, tmp_path):
    done = command("subspace_lab.train", *TINY, f"--base={base}", f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").steps == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--method=droplorra", "method"),
        ("--task=nothing", "there is no task 'nothing'"),
        ("--rankk=4", "rankk"),
        ("--config=nowhere", "there is no preset or file 'nowhere'"),
        ("--rank_mask=true", "method droplora"),
    ],
)
def test_bad_input_is_told_in_one_sentence(tmp_path, argument, told):
    done = command("subspace_lab.train", argument, f"--out={tmp_path / 'run'}")
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_preset_with_a_wrong_field_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("keep_probb: 0.5\n")
    done = command("subspace_lab.train", f"--config={tmp_path / 'mine.yaml'}", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "did you mean 'keep_prob'" in done.stderr
