"""What a rank mask puts on each adapted layer: a forward hook that applies the gates."""

from __future__ import annotations

import warnings
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from subspace_lab.errors import UserError
from subspace_lab.theory.mask_law import MaskLaw

_REMEMBERED = 256
"""Forward passes of one step whose backward pass may still come."""


class MaskHook:
    """The forward hook on one `lora_A`: applies gates to its output (..., r) in training.

    Args:
        owner: the rank mask that the hook belongs to.
        law: the law of the masks.
        module: name of the adapted layer.
        A_module: its `lora_A`, on which the hook is registered.
        B_module: its `lora_B`.

    Attributes:
        multiplier: the step's gates in use, rescaled: (r,), or (r, r) of a law that is not
            diagonal.
        in_evaluation: gates that stay on in evaluation, of that shape or (K, ...); None: none.
        chosen: gates that a caller chose for training, shaped likewise; None: the law's own.
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
        ones = A.new_ones(len(A), dtype=torch.promote_types(A.dtype, torch.float32))
        self.multiplier = ones if law.diagonal else ones.diag()
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
        """Give the output (..., r) under the gates."""
        if not module.training:
            chosen = self.in_evaluation
            return output if chosen is None else self._by_group(output, chosen)
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
            return self._by_group(output, this.chosen)
        if self.law.granularity == "step":
            return self._multiply_by_step_mask(output)
        return self._gated(output, self._draw(output, this.call))

    def _multiply_by_step_mask(self, output: Tensor) -> Tensor:
        self.move(output.device)
        return self._gated(output, self.multiplier)

    def _gated(self, output: Tensor, gates: Tensor) -> Tensor:
        """Multiply (..., r) by gates that broadcast: (..., r), or symmetric (..., r, r)."""
        if self.law.diagonal:
            return (output * gates).to(output.dtype)
        with torch.autocast(output.device.type, enabled=False):
            return (output.to(gates.dtype).unsqueeze(-2) @ gates).squeeze(-2).to(output.dtype)

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
        """Draw sample or token gates, rescaled, that broadcast against `output`."""
        several = distributed.is_available() and distributed.is_initialized()
        process = distributed.get_rank() if several else 0
        seed = self.law.draw_seed(self._step, self.module, call=call, process=process)
        generator = torch.Generator(output.device).manual_seed(seed)
        law = self.law.at(self._step, self.module)
        uniform = draw_uniform(law, output, generator)
        with torch.autocast(output.device.type, enabled=False):
            gates: Tensor = law.gates(uniform, step=self._step, module=self.module)
        return gates

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

    def _by_group(self, output: Tensor, gates: Tensor) -> Tensor:
        """Gate an output (K b, ..., r), its K groups of b by gates (K, ...) each with its own.

        Raises:
            UserError: if the batch cannot be split into K groups.
        """
        gates = gates.to(output.device)
        if gates.dim() > self.multiplier.dim():
            groups = len(gates)
            if output.shape[0] % groups:
                raise UserError(
                    f"a batch of {output.shape[0]} examples cannot be split among {groups} masks"
                )
            gates = gates.repeat_interleave(output.shape[0] // groups, dim=0)
            gates = gates.view(len(gates), *[1] * (output.dim() - 2), *gates.shape[1:])
        return self._gated(output, gates)


class _ForwardPass(NamedTuple):
    """A forward pass of a step: autograd's newest node as it began, its number, chosen gates."""

    newest_node: int
    call: int
    chosen: Tensor | None


def draw_uniform(law: MaskLaw, output: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the uniform numbers of which sample or token gates on `output` (batch, ..., r) are made.

    They are drawn in fp32 whatever the dtype of `output`: bf16 has 256 of them, and ties.

    Returns:
        Numbers (batch, ..., *noise_shape(r)) in fp32, or in the dtype of `output` if that is wider;
        of samples the dimensions between are 1.
    """
    shared = [1] * (output.dim() - 2)
    draws = (output.shape[0], *shared) if law.granularity == "sample" else output.shape[:-1]
    uniform = torch.rand(
        (*draws, *law.noise_shape(output.shape[-1])),
        generator=generator,
        device=output.device,
        dtype=torch.float32,
    )
    return uniform.to(torch.promote_types(output.dtype, torch.float32))
