"""The numbers that quantized weights stand for, where the file says so without doubt.

| stored as | with | weight | written by |
|---|---|---|---|
| FP8, int8 | `weight_scale`, per tensor or row | code * scale | compressed-tensors, FBGEMM |
| FP8 | `weight_scale_inv`, per tensor or block | code * scale | DeepSeek, transformers |
| int8 | `SCB`, per row | code * SCB / 127 | bitsandbytes LLM.int8() |

Everything else, such as 4-bit codes, FP8 without scales, or zero points, is refused: codes are
never taken for weights.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from subspace_lab.errors import UserError

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the types that hold weights
CODES = ("F8_E4M3", "F8_E5M2", "I8")
_COMPANIONS = ("weight_scale", "weight_scale_inv", "SCB")
_UNREADABLE = ("weight_zero_point", "weight_shape", "weight_packed", "weight_g_idx")


def companion(dtype: str, siblings: Collection[str]) -> str | None:
    """Name the tensor beside a weight by which its codes become numbers; None for plain weights.

    Args:
        dtype: safetensors' name of the weight's type.
        siblings: names of the module's other tensors, such as `weight_scale`.

    Raises:
        UserError: if the codes cannot be dequantized without doubt.
    """
    beside = [name for name in siblings if name.startswith("weight_") or name == "SCB"]
    if dtype in FLOATS:
        return None
    scales = [name for name in beside if name in _COMPANIONS]
    if dtype not in CODES or len(scales) != 1 or set(beside) & set(_UNREADABLE):
        raise UserError(f"its weights are stored as {dtype} codes that cannot be dequantized here")
    if (scales[0] == "SCB") != (dtype == "I8" and "weight_scale" not in beside):
        raise UserError(
            f"its weights are {dtype} codes with a scale {scales[0]}, an unknown format"
        )
    return scales[0]


def dequantized(codes: Tensor, scale: Tensor, *, name: str, block: Sequence[int] | None) -> Tensor:
    """Compute the weights (m, n) in float32.

    Args:
        codes: the stored weight (m, n).
        scale: the companion tensor.
        name: its name, see `companion`.
        block: rows and columns of a block that shares a scale, where the base says so.

    Raises:
        UserError: if the shapes leave open which scale belongs to which code.
    """
    scale = scale.float() / 127 if name == "SCB" else scale.float()
    m, n = codes.shape
    if scale.numel() == 1:
        return codes.float() * scale.reshape(())
    if scale.numel() == m and scale.shape in ((m,), (m, 1)):
        return codes.float() * scale.reshape(m, 1)
    if block and scale.shape == (-(-m // block[0]), -(-n // block[1])):
        rows = scale.repeat_interleave(block[0], 0)[:m]
        return codes.float() * rows.repeat_interleave(block[1], 1)[:, :n]
    raise UserError(f"the scales {tuple(scale.shape)} do not say how to read its {m} x {n} codes")
