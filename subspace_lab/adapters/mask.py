"""The rank mask: what makes a LoRA a DropLoRA.

With a mask D = diag(d), d in {0, 1}^r, an adapted layer computes during training

    y = W0 x + scaling * s * B D A x,        s = 1 or s = 1 / keep_prob,

and without it in evaluation. The mask is a forward hook on each `lora_A` module, so the saved
adapter is a plain LoRA adapter. Whether one d serves a whole optimizer step, a sample or a token
is the granularity: the paper's Equation 2 is (`step`, not rescaled), its Algorithm 1 and released
code are (`token`, rescaled), kohya's `rank_dropout` is (`sample`, rescaled).
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from subspace_lab.adapters.modules import LoraModule, lora_modules
from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Granularity = Literal["step", "sample", "token"]
Sampling = Literal["bernoulli", "exact-k"]


@dataclass(frozen=True)
class MaskLaw:
    """How rank masks are drawn.

    Attributes:
        keep_prob: probability q in (0, 1] that a rank direction is kept.
        granularity: what shares one mask: an optimizer `step`, a `sample`, or a `token`.
        rescale: multiply what is kept by 1 / q, so that the mean over masks is the full update.
        sampling: `bernoulli` (each direction on its own) or `exact-k` (q r of them, uniformly).
        seed: seed of the step masks; sample and token masks use torch's global generator.

    Raises:
        UserError: if keep_prob lies outside (0, 1], or a name is unknown.
    """

    keep_prob: float
    granularity: Granularity = "step"
    rescale: bool = True
    sampling: Sampling = "bernoulli"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep_prob <= 1:
            raise UserError(f"keep_prob must lie in (0, 1], not {self.keep_prob}")
        if self.granularity not in get_args(Granularity):
            raise UserError(f"granularity must be step, sample or token, not {self.granularity!r}")
        if self.sampling not in get_args(Sampling):
            raise UserError(f"sampling must be bernoulli or exact-k, not {self.sampling!r}")

    @property
    def factor(self) -> float:
        """What kept directions are multiplied by: s = 1 / keep_prob if rescaled, else 1."""
        return 1 / self.keep_prob if self.rescale else 1.0

    def step_mask(self, step: int, module: str, rank: int) -> NDArray[np.bool_]:
        """Draw the step mask (r,), True = kept: a pure function of (seed, step, module).

        Philox counters (Salmon et al. 2011) make it random access: no state is carried from step
        to step, so micro-batches, data-parallel ranks and resumed runs agree by construction.
        """
        name = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "little")
        stream = np.random.Philox(
            key=np.array([self.seed, name], dtype=np.uint64),
            counter=np.array([0, 0, 0, step], dtype=np.uint64),
        )
        uniform = np.random.Generator(stream).random(rank)
        if self.sampling == "exact-k":
            return uniform.argsort().argsort() < self.kept_exactly(rank)
        return uniform < self.keep_prob

    def random_mask(self, output: Tensor) -> Tensor:
        """Draw a sample or token mask that broadcasts against `output` (batch, ..., r)."""
        rank = output.shape[-1]
        if self.granularity == "sample":
            shape = (output.shape[0], *[1] * (output.dim() - 2), rank)
        else:
            shape = tuple(output.shape)
        draws = torch.empty(shape, dtype=output.dtype, device=output.device)
        if self.sampling == "exact-k":
            order = draws.uniform_().argsort(dim=-1).argsort(dim=-1)
            return (order < self.kept_exactly(rank)).to(output.dtype)
        return draws.bernoulli_(self.keep_prob)

    def kept_exactly(self, rank: int) -> int:
        """Give k = q r of the exact-k law.

        Raises:
            UserError: if q r is not a whole number.
        """
        kept = round(self.keep_prob * rank)
        if abs(kept - self.keep_prob * rank) > 1e-9 or kept == 0:
            raise UserError(
                f"exact-k masks need keep_prob x rank to be a whole number of at least 1, "
                f"not {self.keep_prob} x {rank}"
            )
        return kept


class RankMask:
    """A mask on the rank dimension of every linear LoRA layer of a PEFT model.

    Example:
        mask = RankMask(keep_prob=0.5, granularity="step", rescale=True, seed=0).attach(model)
        trainer.add_callback(SubspaceRecorder("runs/mine"))      # sets the step, and records

    In a training loop of one's own, call `set_step(t)` before optimizer step t = 1, 2, ...

    Args:
        keep_prob: see `MaskLaw`, as for the other arguments.
        granularity: `step`, `sample` or `token`.
        rescale: multiply by 1 / keep_prob.
        sampling: `bernoulli` or `exact-k`.
        seed: seed of the step masks.

    Attributes:
        law: the `MaskLaw`.
        ranks: rank of each masked module.
        kept: the step masks in use, module name to (r,), True = kept; empty for other laws.
    """

    def __init__(
        self,
        keep_prob: float,
        *,
        granularity: Granularity = "step",
        rescale: bool = True,
        sampling: Sampling = "bernoulli",
        seed: int = 0,
    ) -> None:
        self.law = MaskLaw(keep_prob, granularity, rescale, sampling, seed)
        self.ranks: dict[str, int] = {}
        self.kept: dict[str, NDArray[np.bool_]] = {}
        self._hooks: dict[str, _MaskHook] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, model: nn.Module, *, adapter: str = "default") -> Self:
        """Put the mask on every LoRA layer of `model` and draw the masks of step 1.

        Raises:
            UserError: if the model has no LoRA layers, already has a rank mask, or is a DoRA
                asked for sample or token masks, which would corrupt its weight norm.
        """
        modules = lora_modules(model, adapter=adapter)
        if find_rank_mask(model) is not None:
            raise UserError("the model already has a rank mask: detach that one first")
        self._check(modules, adapter)
        for module in modules:
            hook = _MaskHook(self.law, torch.ones_like(module.A[:, 0], requires_grad=False))
            hook.owner = self
            self._hooks[module.name] = hook
            self.ranks[module.name] = module.rank
            self._handles.append(module.A_module.register_forward_hook(hook))
        self.set_step(1)
        return self

    def detach(self) -> None:
        """Take the mask off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooks.clear()
        self.ranks.clear()
        self.kept.clear()

    def set_step(self, step: int) -> None:
        """Use the step masks of optimizer step `step` (from 1) until the next call."""
        if self.law.granularity != "step":
            return
        self.kept = self.masks(step)
        for name, kept in self.kept.items():
            multiplier = self._hooks[name].multiplier
            # copy_ keeps the tensor that a compiled graph has seen.
            multiplier.copy_(torch.from_numpy(kept * self.law.factor), non_blocking=True)

    def masks(self, step: int) -> dict[str, NDArray[np.bool_]]:
        """Give the step masks of one optimizer step: module name to (r,), True = kept.

        Raises:
            UserError: if the masks are per sample or per token: those belong to no step.
        """
        if self.law.granularity != "step":
            raise UserError(f"{self.law.granularity} masks are drawn anew in every forward pass")
        return {name: self.law.step_mask(step, name, rank) for name, rank in self.ranks.items()}

    @contextlib.contextmanager
    def in_evaluation(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Keep chosen masks on while the model evaluates, rescaled as the law says.

        Args:
            masks: module name to (r,) bool, one mask for all rows; or to (K, r) bool, where a
                batch of K b rows is read as K groups of b and group i gets mask i, so that one
                pass on a repeated batch evaluates an ensemble of K masks.

        Raises:
            UserError: if the masks are not exactly those of the masked modules.
        """
        if masks.keys() != self._hooks.keys():
            missing = sorted(self._hooks.keys() ^ masks.keys())
            raise UserError(
                f"evaluation masks must cover the masked modules; differ: {missing[:3]}"
            )
        for name, hook in self._hooks.items():
            hook.in_evaluation = masks[name].to(hook.multiplier) * self.law.factor
        try:
            yield
        finally:
            for hook in self._hooks.values():
                hook.in_evaluation = None

    def _check(self, modules: list[LoraModule], adapter: str) -> None:
        is_dora = any(
            getattr(module.layer, "use_dora", {}).get(adapter, False)
            or adapter in getattr(module.layer, "lora_magnitude_vector", {})
            for module in modules
        )
        if is_dora and self.law.granularity != "step":
            raise UserError(
                f"DoRA pushes the identity matrix through A for its weight norm, which "
                f"{self.law.granularity} masks would corrupt: use granularity step"
            )
        if self.law.sampling == "exact-k":
            for module in modules:
                self.law.kept_exactly(module.rank)
        if self.law.keep_prob < 1 and any(bool(module.B.any()) for module in modules):
            warnings.warn(
                "the adapter's B A is not zero (PiSSA, MiLoRA, or already trained), so a rank "
                "mask changes the model's function from its first step on",
                stacklevel=3,
            )


class _MaskHook:
    """The forward hook on one `lora_A`: multiplies its output (..., r) by the mask."""

    owner: RankMask

    def __init__(self, law: MaskLaw, multiplier: Tensor) -> None:
        self.law = law
        self.multiplier = multiplier
        self.in_evaluation: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output if self.in_evaluation is None else self._chosen(output)
        if self.law.granularity == "step":
            return output * self.multiplier.to(output.dtype)
        return output * (self.law.random_mask(output) * self.law.factor)

    def _chosen(self, output: Tensor) -> Tensor:
        chosen = self.in_evaluation
        assert chosen is not None
        if chosen.dim() == 1:
            return output * chosen.to(output.dtype)
        if output.shape[0] % chosen.shape[0]:
            raise UserError(
                f"a batch of {output.shape[0]} rows cannot be split among {chosen.shape[0]} masks"
            )
        rows = chosen.repeat_interleave(output.shape[0] // chosen.shape[0], dim=0)
        return output * rows.view(-1, *[1] * (output.dim() - 2), rows.shape[-1]).to(output.dtype)


def find_rank_mask(model: nn.Module) -> RankMask | None:
    """Find the rank mask that is attached to a model, if there is one."""
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, _MaskHook):
                return hook.owner
    return None
