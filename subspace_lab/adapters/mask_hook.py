"""What a rank mask puts on each adapted layer: a forward hook that multiplies by the gates."""

from __future__ import annotations

import warnings
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, distributed, nn

from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from subspace_lab.adapters.mask_law import MaskLaw

_REMEMBERED = 256
"""Forward passes of one step whose backward pass may still come."""


class MaskHook:
    """The forward hook on one `lora_A`: multiplies its output (..., r) by gates in training.

    Args:
        owner: the rank mask that the hook belongs to.
        law: the law of the masks.
        module: name of the adapted layer.
        A_module: its `lora_A`, on which the hook is registered.
        B_module: its `lora_B`.

    Attributes:
        multiplier: the step mask in use times the rescale, (r,).
        in_evaluation: masks that stay on in evaluation, (r,) or (K, r), rescaled; None: none.
        chosen: gates that a caller chose for training, (r,) or (K, r); None: the law's own.
        some_chosen: whether gates were chosen for some forward pass since the step began.
        calls: training forward passes since the step began; compiled graphs with a step mask do
            not count theirs.
    """

    def __init__(
        self, owner: object, law: MaskLaw, *, module: str, A_module: nn.Linear, B_module: nn.Linear
    ) -> None:
        self.owner = owner
        self.law = law
        self.module = module
        self.A_module = A_module
        self.B_module = B_module
        A = A_module.weight
        self.multiplier = A.new_ones(len(A), dtype=torch.promote_types(A.dtype, torch.float32))
        self.in_evaluation: Tensor | None = None
        self.chosen: Tensor | None = None
        self.begin(1)

    def begin(self, step: int) -> None:
        """Number the forward passes of optimizer step `step`, which begins."""
        self._step = step
        self.calls = 0
        self.some_chosen = self.chosen is not None
        self._pending: deque[_ForwardPass] = deque(maxlen=_REMEMBERED)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Give the output (..., r) times the gates."""
        if not module.training:
            return output if self.in_evaluation is None else by_group(output, self.in_evaluation)
        if self.law.granularity != "step" or self.some_chosen:
            multiplied: Tensor = self._multiply_by_own_gates(output)
            return multiplied
        if not torch.compiler.is_compiling():
            self._count_call()
        return self._multiply_by_step_mask(output)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # pytorch #198333: random numbers in a graph
    def _multiply_by_own_gates(self, output: Tensor) -> Tensor:
        """Multiply by the gates of this one forward pass: chosen ones, else the law's."""
        this = self._this_pass()
        if this.chosen is not None:
            return by_group(output, this.chosen)
        if self.law.granularity == "step":
            return self._multiply_by_step_mask(output)
        return output * self._draw(output, this.call) * self.law.factor

    def _multiply_by_step_mask(self, output: Tensor) -> Tensor:
        self.move(output.device)
        return (output * self.multiplier).to(output.dtype)

    def move(self, device: torch.device) -> None:
        """Follow the module to the device to which the model was moved."""
        if self.multiplier.device != device:
            self.multiplier = self.multiplier.to(device)

    def _count_call(self) -> None:
        self.calls += 1
        if self.calls == _REMEMBERED:
            warnings.warn(
                f"{self.calls} forward passes in training mode and no optimizer step: the rank "
                f"mask is still that of step {self._step}; if the optimizer does not hold the "
                "adapter's own weights (DeepSpeed), call set_step(t) before each step t",
                stacklevel=2,
            )

    def _draw(self, output: Tensor, call: int) -> Tensor:
        """Draw sample or token gates, bool, that broadcast against `output`."""
        several = distributed.is_available() and distributed.is_initialized()
        process = distributed.get_rank() if several else 0
        seed = self.law.draw_seed(self._step, self.module, call=call, process=process)
        generator = torch.Generator(output.device).manual_seed(seed)
        return draw_gates(self.law, output, generator)

    def _this_pass(self) -> _ForwardPass:
        """Number this forward pass; a recomputation in the backward pass gets its original.

        Autograd numbers its nodes as the forward pass makes them. Gradient checkpointing
        recomputes a layer when the backward pass reaches a node of that layer (or, reentrant, the
        node in its place), which is younger than the layer's beginning in its own forward pass and
        older than the same layer in the next one. So a recomputation has the gates of its forward
        pass, also where the caller has chosen others since.
        """
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass
            self.calls += 1
            newest_node = torch._C._autograd._get_sequence_nr() - 1
            self._pending.append(_ForwardPass(newest_node, self.calls, self.chosen))
            return self._pending[-1]
        reached = torch._C._current_autograd_node()._sequence_nr()
        begun = (past for past in reversed(self._pending) if past.newest_node <= reached)
        return next(begun, _ForwardPass(reached, 1, None))


class _ForwardPass(NamedTuple):
    """A forward pass of a step: autograd's newest node as it began, its number, chosen gates."""

    newest_node: int
    call: int
    chosen: Tensor | None


def by_group(output: Tensor, gates: Tensor) -> Tensor:
    """Multiply an output (K b, ..., r) by gates (r,), or its K groups of b by gates (K, r).

    Raises:
        UserError: if the batch cannot be split into K groups.
    """
    gates = gates.to(output.device)
    if gates.dim() == 2:
        groups, rank = gates.shape
        if output.shape[0] % groups:
            raise UserError(
                f"a batch of {output.shape[0]} rows cannot be split among {groups} masks"
            )
        gates = gates.repeat_interleave(output.shape[0] // groups, dim=0)
        gates = gates.view(-1, *[1] * (output.dim() - 2), rank)
    return (output * gates).to(output.dtype)


def draw_gates(law: MaskLaw, output: Tensor, generator: torch.Generator) -> Tensor:
    """Draw sample or token masks, bool, that broadcast against `output` (batch, ..., r).

    Uniform numbers are fp32 whatever the dtype of `output`: bf16 has 256 of them, and ties.
    """
    rank = output.shape[-1]
    per_sample = (output.shape[0], *[1] * (output.dim() - 2), rank)
    uniform = torch.rand(
        per_sample if law.granularity == "sample" else output.shape,
        generator=generator,
        device=output.device,
        dtype=torch.float32,
    )
    if law.sampling == "exact-k":
        return uniform.argsort(dim=-1).argsort(dim=-1) < law.kept_exactly(rank)
    return uniform < law.keep_prob
