"""PEFT adapters read straight from their files: no base model, no GPU, one module at a time.

    folder = AdapterFolder(resolve_adapter("runs/mine/snapshots/step-000100"))
    folder.modules                    # DataFrame: module, layer, projection, m, n, r, scaling, ...
    folder.factors(module)            # B (m, r), A (r, n), scaling
    folder.skipped                    # DataFrame: module, reason, parameters

LoRA in all its layer kinds, rsLoRA, DoRA and AdaLoRA are read. What is not an update scaling * B A
of stored factors is listed in `skipped`, never guessed.

A PiSSA, CorDA, OLoRA or LoRA-GA adapter changed the base weight at its start. Saved with
`path_initial_model_for_weight_conversion` it is a plain LoRA of twice the rank, valid on the
original base; otherwise B A is the update of the residual base, and the column `note` says so,
as far as the configuration tells: an initialization made by hand (MiLoRA) or saved as
`init_lora_weights=True` leaves no trace in the files.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from subspace_lab.errors import UserError
from subspace_lab.linalg.factors import Factors
from subspace_lab.module_table import module_table
from subspace_lab.peft_files.configuration import read_config
from subspace_lab.peft_files.stored_modules import LeftOut, StoredModule, count, sort_tensors
from subspace_lab.peft_files.weights import (
    WEIGHT_FILES,
    find_weights,
    read_tensors,
    tensor_shapes,
)


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
        UserError: if the folder holds no adapter, one that is not a LoRA, or a broken file.
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
        self.modules = module_table((m.name, m.m, m.n, m.r, m.scaling) for m in stored).assign(
            kind=[m.kind for m in stored],
            variant=config.variant,
            note=[m.note for m in stored],
        )

    def __repr__(self) -> str:
        return f"AdapterFolder({str(self.path)!r}): {len(self.modules)} modules"

    def factors(self, module: str) -> Factors:
        """Read one module's factors, in the file's dtype, and no other tensor.

        With AdaLoRA, whose update is scaling * P diag(E) Q, B is P and A is diag(E) Q. With DoRA,
        they are the update of the direction; see `dora_whole_update`.

        Raises:
            UserError: if the module has no factors here; the message says why.
        """
        stored = self._find(module)
        B, A = read_tensors(self._weights, (stored.B_key, stored.A_key))
        if stored.E_key is not None:
            A = A * read_tensors(self._weights, (stored.E_key,))[0]
        return Factors(module, B.flatten(1), A.flatten(1), stored.scaling, stored.kind)

    def magnitude(self, module: str) -> Float[Tensor, " m"]:
        """Read a DoRA module's magnitude, one number per row of dW.

        Raises:
            UserError: if the module is missing, or is not a DoRA.
        """
        stored = self._find(module)
        if stored.magnitude_key is None:
            raise UserError(f"{module} in {self.path} is not a DoRA: it has no magnitude")
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
