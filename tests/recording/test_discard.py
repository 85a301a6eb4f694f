"""What is deleted of a run that was stopped: to start again, or to go on from a checkpoint."""

from __future__ import annotations

import pandas as pd
import pytest

from subspace_lab.errors import UserError
from subspace_lab.recording.run_folder import discard_unfinished, forget_after, refuse_if_occupied


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


def test_going_on_from_a_checkpoint_forgets_what_came_after_it_and_halves(tmp_path):
    end = ".safetensors"
    stay = [f"cores/steps-00000000-00000002{end}", f"masks/steps-00000001-00000004{end}"]
    stay += ["snapshots/step-000000/a", "snapshots/step-000004/a", "evaluations/boolq.parquet"]
    go = [f"cores/steps-00000005-00000006{end}", f"masks/steps-00000005-00000005{end}"]
    go += ["snapshots/step-000006/a", "snapshots/.step-000008.7.unfinished/a"]
    go += [".metrics.parquet.7.unfinished", f"cores/.steps-00000007-00000008{end}.7.unfinished"]
    for name in stay + go:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    metrics = pd.DataFrame(
        {"step": [3, 4, 5], "loss": [3.0, 2.0, 1.0], "eval_loss": [9.0, None, 8]}
    )
    metrics.to_parquet(tmp_path / "metrics.parquet")
    assert forget_after(tmp_path, 4) == {3: {"loss": 3.0, "eval_loss": 9.0}, 4: {"loss": 2.0}}
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*stay, "metrics.parquet"}
