"""Starting again where a run was stopped before its first checkpoint."""

from __future__ import annotations

import pytest

from subspace_lab.errors import UserError
from subspace_lab.recording.writer import discard_unfinished, refuse_if_occupied


def test_a_stopped_run_goes_with_its_analyses_but_not_with_files_of_others(tmp_path):
    for name in ("cores/a", "snapshots/b", "analyses/c", "evaluations/d"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "run.json").touch()
    (tmp_path / ".run.json.7.unfinished").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"also holds notes\.txt"):
        discard_unfinished(tmp_path)
    assert (tmp_path / "cores" / "a").exists()
    (tmp_path / "notes.txt").unlink()
    discard_unfinished(tmp_path)
    refuse_if_occupied(tmp_path)
    assert not any(tmp_path.iterdir())
