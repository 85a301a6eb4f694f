"""Folders and files: checkpoints in order, streaming, what is missing, broken or out of reach."""

import contextlib
import json
import resource
import struct
import sys

import pytest
import torch
from safetensors.torch import save_file

from subspace_lab.errors import UserError
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.peft_files.checkpoints import open_checkpoints, resolve_adapter

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
MODULE = "model.layers.3.mlp.up_proj"


def tensors(value=1.0):
    prefix = f"base_model.model.{MODULE}"
    return {
        f"{prefix}.lora_A.weight": torch.full((2, 5), value),
        f"{prefix}.lora_B.weight": torch.full((3, 2), value),
    }


def write_adapter(folder, *, value=1.0, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors(value), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("names", ["checkpoint-{}", "snapshots/step-{:06d}"])
def test_checkpoints_come_in_numeric_order(tmp_path, names):
    for step in (100, 20, 3):
        write_adapter(tmp_path / names.format(step), value=float(step))
    checkpoints = open_checkpoints(tmp_path)
    assert list(checkpoints) == [3, 20, 100]
    assert checkpoints[20].factors(MODULE).A[0, 0] == 20
    assert checkpoints.left_out.empty


def test_the_snapshots_folder_itself_opens(tmp_path):
    write_adapter(tmp_path / "snapshots/step-000007")
    assert list(open_checkpoints(tmp_path / "snapshots")) == [7]


def test_unfinished_checkpoints_are_left_out_with_a_note(tmp_path):
    write_adapter(tmp_path / "checkpoint-1")
    (write_adapter(tmp_path / "checkpoint-2") / "adapter_model.safetensors").unlink()
    (write_adapter(tmp_path / "checkpoint-3") / "adapter_config.json").unlink()
    half = write_adapter(tmp_path / "checkpoint-4") / "adapter_model.safetensors"
    half.write_bytes(half.read_bytes()[:-10])
    (tmp_path / "checkpoint-best").mkdir()
    checkpoints = open_checkpoints(tmp_path)
    assert list(checkpoints) == [1]
    reasons = checkpoints.left_out.set_index("folder")["reason"]
    assert list(reasons.index) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert "still being written" in reasons["checkpoint-2"]


def test_a_folder_without_checkpoints_is_empty(tmp_path):
    assert not open_checkpoints(tmp_path)
    assert not open_checkpoints(tmp_path / "nowhere")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_cut_off_file_is_named(tmp_path, length):
    file = write_adapter(tmp_path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        AdapterFolder(tmp_path)


@pytest.fixture
def pickled(tmp_path):
    """Write an adapter whose weights are whatever is pickled, in torch's new or older format."""
    (write_adapter(tmp_path) / "adapter_model.safetensors").unlink()

    def save(content, *, new=True):
        file = tmp_path / "adapter_model.bin"
        torch.save(content, file, _use_new_zipfile_serialization=new)
        return file

    return save


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter])
def test_pickled_weights_are_read(pickled, kind, new):
    folder = pickled({key: kind(value) for key, value in tensors(7.0).items()}, new=new).parent
    B = AdapterFolder(folder).factors(MODULE).B
    assert torch.equal(B, torch.full((3, 2), 7.0)) and not B.requires_grad


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_is_never_executed(pickled, new):
    folder = pickled({"run": Payload()}, new=new).parent
    with pytest.raises(UserError, match=r"adapter_model\.bin cannot be read.*never executed"):
        AdapterFolder(folder)
    pickled([1, 2], new=new)
    with pytest.raises(UserError, match="something other than named tensors"):
        AdapterFolder(folder)


@pytest.mark.parametrize("new", [True, False])
def test_damaged_pickles_end_in_a_sentence(pickled, new):
    file = pickled(tensors(), new=new)
    whole = file.read_bytes()
    for place in range(2, len(whole) // 2, len(whole) // 40):
        for damaged in (whole[:place], whole[:place] + b"\xff\xfe" + whole[place + 2 :]):
            file.write_bytes(damaged)
            with contextlib.suppress(UserError):  # and no other error
                AdapterFolder(file.parent).factors(MODULE)


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_one_module_of_a_gigabyte_costs_its_own_memory(tmp_path):
    write_adapter(tmp_path, config=CONFIG | {"r": 64})
    shapes = {}
    for layer in range(16):
        prefix = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        shapes[f"{prefix}.lora_A.weight"] = (64, 2**17)
        shapes[f"{prefix}.lora_B.weight"] = (2**17, 64)
    write_sparse(tmp_path / "adapter_model.safetensors", shapes)

    folder = AdapterFolder(tmp_path)
    before = peak_bytes()
    factors = folder.factors("model.layers.7.mlp.up_proj")
    grown = peak_bytes() - before
    one_module = 4 * (factors.A.numel() + factors.B.numel())
    assert one_module == 2**26
    assert grown < 4 * one_module


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_sparse(file, shapes):
    """Write a safetensors file of zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, (rows, columns) in shapes.items():
        start, end = end, end + 4 * rows * columns
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def test_gathered_shards_only(tmp_path):
    # DeepSpeed ZeRO-3 leaves empty tensors when the shards are not gathered before saving.
    write_adapter(tmp_path)
    empty = {key: torch.zeros(0) for key in tensors()}
    save_file(empty, tmp_path / "adapter_model.safetensors")
    folder = AdapterFolder(tmp_path)
    assert folder.modules.empty
    assert "sharded" in folder.skipped["reason"][0]


def test_an_unknown_tensor_of_a_module_is_no_plain_lora(tmp_path):
    write_adapter(tmp_path)
    extra = {f"base_model.model.{MODULE}.lora_diag": torch.ones(2)}
    save_file(tensors() | extra, tmp_path / "adapter_model.safetensors")
    assert "lora_diag" in AdapterFolder(tmp_path).skipped["reason"][0]


def test_messages_say_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"has no adapter_config\.json: name"):
        AdapterFolder(tmp_path)
    write_adapter(tmp_path / "inner")
    with pytest.raises(UserError, match="subfolders inner do"):
        AdapterFolder(tmp_path)
    folder = AdapterFolder(tmp_path / "inner")
    with pytest.raises(UserError, match=f"no module lm_head.*{MODULE}"):
        folder.factors("lm_head")
    with pytest.raises(UserError, match="not a DoRA"):
        folder.magnitude(MODULE)
    (tmp_path / "inner/adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        AdapterFolder(tmp_path / "inner")
    with pytest.raises(UserError, match="lacks the number 'lora_alpha'"):
        AdapterFolder(write_adapter(tmp_path / "b", config={"peft_type": "LORA", "r": 2}))


def test_resolving_prefers_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "owner/name")
    assert resolve_adapter("owner/name").resolve() == tmp_path / "owner/name"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c", "runs/x"])
def test_what_can_be_no_hub_id_is_not_looked_up(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", pytest.fail)
    said = "no adapter folder nowhere, and it" if name == "nowhere" else f"{name} does not exist"
    with pytest.raises(UserError, match=said):
        resolve_adapter(name)


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as raised:
        resolve_adapter("nobody/no-such-adapter")
    assert "nobody/no-such-adapter" in str(raised.value)
    assert "check the name and the connection" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_hub_is_asked_for_the_adapter_files_only(tmp_path, monkeypatch):
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "owner/base").mkdir(parents=True)
    with pytest.raises(UserError, match="not a PEFT adapter"):
        resolve_adapter("owner/base")
    write_adapter(tmp_path / "owner/adapter")
    assert resolve_adapter("owner/adapter") == tmp_path / "owner/adapter"
    assert asked == [("owner/base", ["adapter_*"]), ("owner/adapter", ["adapter_*"])]
