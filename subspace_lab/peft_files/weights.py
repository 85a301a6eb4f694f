"""The weights file of an adapter, read tensor by tensor.

Shapes come from the file's header, and a tensor's bytes are read when that tensor is asked for,
so an adapter of many gigabytes costs the memory of one module.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from subspace_lab.errors import UserError

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def find_weights(folder: Path) -> Path | None:
    """Find the weights file of an adapter folder, safetensors first, as PEFT does."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """List the tensors of a weights file with their shapes, without reading their values.

    Raises:
        UserError: if the file is truncated, malformed, or not a file of tensors.
    """
    with _reading(file):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                keys = tensors.keys()
                return {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
        return {key: tuple(tensor.shape) for key, tensor in _mapped_pickle(file).items()}


def read_tensors(file: Path, keys: Iterable[str]) -> list[Tensor]:
    """Read the named tensors, and no others, in the order of `keys`.

    Raises:
        UserError: if the file can no longer be read.
    """
    with _reading(file):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return [tensors.get_tensor(key) for key in keys]
        pickled = _mapped_pickle(file)
        return [pickled[key].detach().clone() for key in keys]  # values may be Parameters


def _mapped_pickle(file: Path) -> Mapping[str, Tensor]:
    """Load a `.bin` without executing its pickle; torch's older format cannot be memory-mapped."""
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} holds something other than named tensors: it is not an adapter")
    return content


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch's unpickler raises almost any kind on damaged bytes
        reason = str(error).strip().partition("\n")[0]
        if file.suffix == ".bin" and not isinstance(error, OSError):
            # torch's own text advises to execute the pickle.
            reason = "a pickle is read for its tensors only, and never executed"
        raise UserError(
            f"{file} cannot be read, it is cut off or not a file of tensors ({reason}): "
            "save or download the adapter again"
        ) from error
