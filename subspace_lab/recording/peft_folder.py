"""PEFT adapters read straight from their files: no base model, no GPU, one module at a time.

    folder = AdapterFolder(resolve_adapter("runs/mine/snapshots/step-000100"))
    folder.modules                    # DataFrame: module, layer, projection, m, n, r, scaling, ...
    folder.factors(module)            # B (m, r), A (r, n), scaling
    folder.skipped                    # DataFrame: module, reason, parameters

LoRA in all its layer kinds, rsLoRA, DoRA and AdaLoRA are read. What is not an update scaling * B A
of stored factors is named in `skipped`, never guessed.

A PiSSA, CorDA, OLoRA or LoRA-GA adapter changed the base weight at its start. Saved with
`path_initial_model_for_weight_conversion` it is a plain LoRA of twice the rank, valid on the
original base; otherwise B A is the update of the residual base, and the column `note` says so,
as far as the configuration tells: an initialisation made by hand (MiLoRA) or saved as
`init_lora_weights=True` leaves no trace in the files.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from subspace_lab.errors import UserError
from subspace_lab.recording.factors import Factors
from subspace_lab.recording.names import layer_and_projection
from subspace_lab.recording.peft_files.configuration import CONFIG_FILE, read_config
from subspace_lab.recording.peft_files.dora import DoraUpdate, dora_whole_update
from subspace_lab.recording.peft_files.modules import LeftOut, StoredModule, count, sort_tensors
from subspace_lab.recording.peft_files.weights import (
    WEIGHT_FILES,
    find_weights,
    read_tensors,
    tensor_shapes,
)
from subspace_lab.recording.root_adapter import RootAdapter, find_root_adapter

__all__ = [
    "AdapterFolder",
    "Checkpoints",
    "DoraUpdate",
    "checkpoint_folders",
    "dora_whole_update",
    "open_checkpoints",
    "resolve_adapter",
]

_MODULE_COLUMNS = ["module", "layer", "projection", "m", "n", "r", "scaling", "kind"]


class AdapterFolder:
    """A folder that PEFT's `save_pretrained` wrote.

    Opening reads the configuration and the header of the weights; `factors` reads one module.

    Args:
        path: the folder with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).

    Attributes:
        path: the folder.
        config: the content of `adapter_config.json`.
        modules: one row per module with an update scaling * B A, in the file's order: `module`
            (path in the base model), `layer` (-1 if none) and `projection` (see
            `layer_and_projection`), `m`, `n`, `r`, `scaling`, `kind` (see `Factors`), `variant`
            (lora, dora, rslora, dora+rslora, adalora), `note`.
        skipped: one row per `module` and `reason` for what the file holds besides, with the number
            of trained `parameters`.
        parameters: how many numbers the modules with an update hold (factors, magnitudes).

    Raises:
        UserError: if the folder holds no adapter, one that is no LoRA, or a broken file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        config = read_config(self.path)
        weights = find_weights(self.path)
        if weights is None:
            raise UserError(
                f"{self.path} holds no weights ({' or '.join(WEIGHT_FILES)}): the adapter is "
                "still being written, or was copied in part"
            )
        self._weights = weights
        self.config = config.values
        shapes = tensor_shapes(weights)
        stored, skipped = sort_tensors(shapes, config)
        if not shapes:
            reason = "the file holds no tensors: sharded weights, or nothing was trained?"
            skipped = [LeftOut(weights.name, reason, 0)]
        self._stored = {module.name: module for module in stored}
        self.skipped = pd.DataFrame(skipped, columns=["module", "reason", "parameters"])
        self.parameters = count(shapes, (key for module in stored for key in module.keys))
        self.modules = pd.DataFrame(
            [
                (m.name, *layer_and_projection(m.name), m.m, m.n, m.r, m.scaling, m.kind, m.note)
                for m in stored
            ],
            columns=[*_MODULE_COLUMNS, "note"],
        )
        self.modules.insert(len(_MODULE_COLUMNS), "variant", config.variant)

    def __repr__(self) -> str:
        return f"AdapterFolder({str(self.path)!r}): {len(self.modules)} modules"

    def factors(self, module: str) -> Factors:
        """Read one module's factors, in the file's dtype, and no other tensor.

        With AdaLoRA, whose update is scaling * P diag(E) Q, B is P and A is diag(E) Q. With DoRA,
        they are the update of the direction; see `dora_whole_update`.

        Raises:
            UserError: if the module has no factors here; the message tells why.
        """
        stored = self._find(module)
        B, A = read_tensors(self._weights, (stored.B_key, stored.A_key))
        if stored.E_key is not None:
            A = A * read_tensors(self._weights, (stored.E_key,))[0]
        return Factors(module, B.flatten(1), A.flatten(1), stored.scaling, stored.kind)

    def magnitude(self, module: str) -> Float[Tensor, " m"]:
        """Read a DoRA module's magnitude, one number per row of dW.

        Raises:
            UserError: if the module is not there, or is no DoRA.
        """
        stored = self._find(module)
        if stored.magnitude_key is None:
            raise UserError(f"{module} in {self.path} is no DoRA: it has no magnitude")
        return read_tensors(self._weights, (stored.magnitude_key,))[0].flatten()

    def _find(self, module: str) -> StoredModule:
        if module in self._stored:
            return self._stored[module]
        reasons = self.skipped.loc[self.skipped["module"] == module, "reason"]
        if len(reasons):
            raise UserError(f"{module} in {self.path} has no factors: {'; '.join(reasons)}")
        example = next(iter(self._stored), "none")
        raise UserError(
            f"{self.path} adapts no module {module}: its modules are named like {example}"
        )


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
    output folder of a `transformers.Trainer`), and takes the first sort that is there. The result
    is empty where there is none: a run need not keep adapters.

    Args:
        path: the run's folder.
    """
    for pattern in ("snapshots/step-*", "step-*", "checkpoint-*"):
        steps = {
            int(found[1]): folder
            for folder in Path(path).glob(pattern)
            if (found := re.fullmatch(r"[a-z]+-(\d+)", folder.name)) and folder.is_dir()
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
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(
            f"there is no adapter folder {name}, and it is no hub id of the form owner/name: "
            f"give the folder that holds {CONFIG_FILE}"
        )
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, allow_patterns=["adapter_*"]))
    except Exception as error:  # each layer below (cache, HTTP, proxy) has errors of its own
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"there is no adapter folder {name}, and the hub gave no adapter of that id "
            f"({type(error).__name__}: {first_line}): check the name and the connection"
        ) from error
    if not (found / CONFIG_FILE).is_file():
        raise UserError(f"{name} on the hub holds no {CONFIG_FILE}: it is no PEFT adapter")
    return found
