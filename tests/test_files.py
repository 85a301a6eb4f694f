"""JSON files are valid JSON, and a full disk is one sentence, whatever library meets it."""

from __future__ import annotations

import errno
import json
import math

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError

from subspace_lab import files
from subspace_lab.errors import exit_code_2_on_user_error


def test_numbers_that_json_cannot_hold_become_null(tmp_path):
    content = {"a": [1.5, math.nan, {"b": -math.inf}], "c": (2, "nan"), "d": None}
    files.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert found == {"a": [1.5, None, {"b": None}], "c": [2, "nan"], "d": None}


FULL = [
    (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
    (OSError(errno.EFBIG, "File too large"), errno.EFBIG),
    (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), 27),
    (pa.ArrowException("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space"), 28),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8"), errno.EIO),
    (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), errno.EIO),
]


@pytest.mark.parametrize(("error", "number"), FULL)
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, capsys, error, number):
    @exit_code_2_on_user_error
    def main() -> None:
        with files.replacing(tmp_path / "x") as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2 and not list(tmp_path.iterdir())
    line = capsys.readouterr().err
    assert line.startswith(f"error: {tmp_path / 'x'} cannot be written (") and line.count("\n") == 1
    assert files.storage_error(error, tmp_path).errno == number


@pytest.mark.parametrize(
    "error",
    [ValueError("os error 2"), OSError(errno.ENOENT, "none"), RuntimeError("out of memory")],
)
def test_other_errors_stay_as_they_are(tmp_path, error):
    assert files.storage_error(error, tmp_path) is None
    with pytest.raises(type(error)) as raised, files.replacing(tmp_path / "x"):
        raise error
    assert raised.value is error


def test_torchs_own_error_at_a_limit_is_known(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RuntimeError) as raised:
            torch.save(torch.zeros(100_000), tmp_path / "x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files.storage_error(raised.value, tmp_path) is not None
