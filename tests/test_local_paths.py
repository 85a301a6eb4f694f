"""A mistyped path is said to be one, and the hub is asked for what can be an id of it."""

from __future__ import annotations

import pytest

from subspace_lab import models
from subspace_lab.errors import UserError
from subspace_lab.local_paths import refuse_missing_path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "runs/first/model").mkdir(parents=True)
    (tmp_path / "runs/first/run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/frist", "there is no frist in runs, did you mean 'first'?"),
        ("runs/frist/model", "there is no frist in runs, did you mean 'first'?"),
        ("runs/first/modle", "there is no modle in runs/first, did you mean 'model'?"),
        ("runs/other", "there is no other in runs"),
        ("./rums/first", "there is no rums in the current folder, did you mean 'runs'?"),
        ("one/two/three", "there is no one in the current folder"),
        ("~/runs/frist", "there is no frist in {here}/runs, did you mean 'first'?"),
        ("/no-such-folder/model", "there is no no-such-folder in /"),
        ("runs/first/run.json/x", "there is no x in runs/first/run.json"),
    ],
)
def test_the_missing_part_of_a_path_is_named(here, name, said):
    with pytest.raises(UserError) as raised:
        refuse_missing_path(name)
    assert str(raised.value) == f"{name} does not exist: {said.format(here=here)}"
    with pytest.raises(UserError, match="does not exist"):
        models.find_base(name)


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-2-7b-hf", "runs/first", "runs"])
def test_what_exists_or_can_be_a_hub_id_is_not_refused(name):
    refuse_missing_path(name)


def test_a_base_is_a_folder_of_a_model_or_a_hub_id(here):
    assert models.find_base("owner/name") == models.Base("owner/name", "owner/name")
    for name in ("runs/first/model", "runs/first/run.json"):
        with pytest.raises(UserError, match=f"{name} holds no config.json"):
            models.find_base(name)
    (here / "runs/first/model/config.json").write_text("{}")
    assert models.find_base("runs/first/model").location == "runs/first/model"
    assert models.find_base("~/runs/first/model").location == str(here / "runs/first/model")
