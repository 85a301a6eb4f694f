"""The adapters of one training run, by optimizer step, and where an adapter's folder is."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from subspace_lab.errors import UserError
from subspace_lab.local_paths import refuse_missing_path
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from subspace_lab.peft_files.configuration import CONFIG_FILE
from subspace_lab.peft_files.lora_file import LoraFile
from subspace_lab.peft_files.root_adapter import RootAdapter, find_root_adapter


class Checkpoints(dict[int, AdapterFolder]):
    """The adapters of one training run, by optimizer step, in ascending order.

    Attributes:
        left_out: one row per `folder` and `reason` for checkpoints that could not be opened,
            such as one that is still being written, or hold nothing that can be read.
        root: the adapter that lies beside the checkpoints, as the final one; None without.
    """

    def __init__(
        self, adapters: dict[int, AdapterFolder], left_out: pd.DataFrame, root: RootAdapter | None
    ) -> None:
        super().__init__(adapters)
        self.left_out = left_out
        self.root = root


def checkpoint_folders(path: str | Path) -> dict[int, Path]:
    """Find the folders that a training run left, by their steps in ascending order.

    Looks for `snapshots/step-N` (a run), then `step-N` (its snapshots), then `checkpoint-N` (the
    output folder of a `transformers.Trainer`), and uses the first kind that exists. The result
    is empty where there is none: a run need not keep adapters.

    Args:
        path: the run's folder.
    """
    for pattern in ("snapshots/step-*", "step-*", "checkpoint-*"):
        steps = {
            int(match[1]): folder
            for folder in Path(path).glob(pattern)
            if (match := re.fullmatch(r"[a-z]+-(\d+)", folder.name)) and folder.is_dir()
        }
        if steps:
            return dict(sorted(steps.items()))
    return {}


def open_checkpoints(path: str | Path) -> Checkpoints:
    """Open the adapters that a training run left and that can be read as factors.

    These are its `checkpoint_folders`, and the adapter beside them (see `find_root_adapter`).
    """
    folders = checkpoint_folders(path)
    if root := find_root_adapter(Path(path), folders):
        folders = dict(sorted({**folders, root.step: root.folder}.items()))
    adapters: dict[int, AdapterFolder] = {}
    left_out = []
    for step, folder in folders.items():
        try:
            adapter = AdapterFolder(folder)
        except UserError as error:
            left_out.append((folder.name, str(error)))
            continue
        if adapter.modules.empty:
            reasons = adapter.skipped["reason"].unique()
            left_out.append((folder.name, f"it has no factors that can be read: {reasons[0]}"))
        else:
            adapters[step] = adapter
    table = pd.DataFrame(left_out, columns=["folder", "reason"])
    return Checkpoints(adapters, table, root)


def resolve_adapter(path_or_hub_id: str | Path) -> Path:
    """Find an adapter's folder: a local one, or the hub's, downloaded into its cache.

    Args:
        path_or_hub_id: a folder, or an id such as `owner/adapter` on the Hugging Face hub.

    Raises:
        UserError: if it is neither, or the hub cannot be reached.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    refuse_missing_path(name)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(
            f"there is no adapter folder {name}, and it is not a hub id of the form owner/name: "
            f"name the folder that holds {CONFIG_FILE}"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["adapter_*"]))
    except Exception as error:  # each layer below (cache, HTTP, proxy) has errors of its own
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"there is no adapter folder {name}, and the hub has no readable adapter of that id "
            f"({type(error).__name__}: {first_line}): check the name and the connection"
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{name} on the hub has no {CONFIG_FILE}: it is not a PEFT adapter")
    return folder


def open_any(path_or_hub_id: str | Path) -> Checkpoints:
    """Open what another tool trained: a folder with checkpoints, or one adapter as step 0.

    Raises:
        UserError: if it is neither, or none of the checkpoints can be read.
    """
    path = Path(path_or_hub_id)
    if path.suffix == ".safetensors" and path.is_file():
        return Checkpoints({0: LoraFile(path)}, pd.DataFrame(columns=["folder", "reason"]), None)
    checkpoints = open_checkpoints(path)
    if checkpoints:
        return checkpoints
    if len(checkpoints.left_out):
        folder, reason = checkpoints.left_out.iloc[-1]
        raise UserError(f"{path} has no checkpoint that can be read ({folder}: {reason})")
    adapter = AdapterFolder(resolve_adapter(path_or_hub_id))
    return Checkpoints({0: adapter}, checkpoints.left_out, None)
