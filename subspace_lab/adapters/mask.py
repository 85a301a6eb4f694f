"""The rank mask: what makes a LoRA a DropLoRA.

With a mask D = diag(d), d in {0, 1}^r, an adapted layer computes during training

    y = W0 x + scaling * s * B D A x,        s = 1 or s = 1 / keep_prob,

and without it in evaluation. The mask is a forward hook on each `lora_A` module, so the saved
adapter is a plain LoRA adapter. Whether one d serves a whole optimizer step, a sample or a token
is the granularity: the paper's Equation 2 is (`step`, not rescaled), its Algorithm 1 and released
code are (`token`, rescaled), kohya's `rank_dropout` is (`sample`, rescaled). `theory.mask_law` has
further laws of gates s D, which need not be masks.

The masks are a pure function of the law's seed, the optimizer step and the module; those of samples
and tokens also of the forward pass within the step and of the data-parallel process. Torch's global
random generator is not used, so the order of the data and input dropout do not depend on the mask.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer

from subspace_lab.adapters.chosen_gates import check_gates, chosen_on
from subspace_lab.adapters.mask_check import check_modules, refuse_unmasked
from subspace_lab.adapters.mask_hook import MaskHook
from subspace_lab.adapters.mask_steps import OptimizerWatch, steps_taken
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.theory.mask_law import Granularity, MaskLaw, Rescale, mask_law


class RankMask:
    """A mask on the rank dimension of every linear LoRA layer of a PEFT model.

    Example:
        RankMask(keep_prob=0.5, granularity="step", rescale=True, seed=0).attach(model)
        trainer = Trainer(model=model, ...)

    The mask advances by itself with every step of an optimizer that holds the adapter, in any loop.
    A Trainer built after `attach` also sets the step from its own count, so that a resumed run
    continues with the masks of its step. To resume a loop of your own, call `set_step(t)` before
    optimizer step t.

    Args:
        keep_prob: see `MaskLaw`, as for the other arguments.
        granularity: `step`, `sample` or `token`.
        rescale: `keep_prob` or True (multiply by 1 / keep_prob), `realized`, `none` or False.
        sampling: name of the law, see `theory.mask_law`.
        seed: seed of the masks.
        settings: dwell, schedule, schedule_steps, keep_prob_pattern, shared; settings of the law.
        checked_steps: number of optimizer steps, from the first on, in which the gradients are
            checked: they show whether the mask is applied. 0 for a loss with a term in A or B
            themselves, whose gradient no mask touches.

    Attributes:
        law: the `MaskLaw`.
        step: the optimizer step, from 1, whose masks are in use.
        ranks: rank of each masked module.
        kept: the step masks in use, module name to (r,), True = kept; empty where masks are per
            sample or token, where gates are not masks, and in a step for which gates were chosen.
        taken: under what the optimizer took its last step: `kept` and `gates_chosen` as they were
            then. None before the first step, and where the optimizer does not hold the adapter's
            own weights (DeepSpeed).
    """

    def __init__(
        self,
        keep_prob: float,
        *,
        granularity: Granularity = "step",
        rescale: Rescale | bool = "keep_prob",
        sampling: str = "bernoulli",
        seed: int = 0,
        checked_steps: int = 3,
        **settings: Any,
    ) -> None:
        self.law = mask_law(
            keep_prob,
            sampling=sampling,
            granularity=granularity,
            rescale=rescale,
            seed=seed,
            **settings,
        )
        self.checked_steps = checked_steps
        self.step = 0
        self.ranks: dict[str, int] = {}
        self.kept: dict[str, NDArray[np.bool_]] = {}
        self.taken: tuple[Mapping[str, NDArray[np.bool_]], bool] | None = None
        self._hooks: dict[str, MaskHook] = {}
        self._handles: list[Any] = []

    @classmethod
    def of(cls, law: MaskLaw) -> Self:
        """Make the mask that follows a given law."""
        mask = cls(law.keep_prob)
        mask.law = law
        return mask

    def attach(self, model: nn.Module, *, adapter: str = "default") -> Self:
        """Put the mask on every LoRA layer of `model` and draw the masks of step 1.

        Raises:
            UserError: if the model has no LoRA layers, already has a rank mask, is a DoRA asked for
                sample or token masks, which would corrupt its weight norm, or the law does not fit
                the modules. Later, from
                the optimizer's step: if the gradients show that the mask is not applied, or the
                optimizer continues an earlier training and the mask's step is not known.
        """
        modules = lora_modules(model, adapter=adapter)
        if find_rank_mask(model) is not None:
            raise UserError("the model already has a rank mask: detach that one first")
        check_modules(self.law, modules, adapter=adapter)
        for module in modules:
            hook = MaskHook(
                self,
                self.law,
                module=module.name,
                A_module=module.A_module,
                B_module=module.B_module,
            )
            self._hooks[module.name] = hook
            self.ranks[module.name] = module.rank
            self._handles.append(module.A_module.register_forward_hook(hook))
        self._checked = self._trainer_steps = 0
        self._gradients_seen = self._advances_soon = False
        self._follow_training()
        self.step = 0
        self.set_step(1)
        self._step_is_certain = False
        return self

    def detach(self) -> None:
        """Take the mask off the model."""
        for handle in self._handles:
            handle.remove()
        self._watch.stop()
        self._trainers.stop()
        self._handles.clear()
        self._hooks.clear()
        self.ranks.clear()
        self.kept.clear()

    @property
    def gates_chosen(self) -> bool:
        """Whether gates were chosen with `use` since the optimizer step began."""
        return any(hook.some_chosen for hook in self._hooks.values())

    def set_step(self, step: int) -> None:
        """Use the masks of optimizer step `step` (from 1) from now on, whatever was counted."""
        self._step_is_certain = True
        for hook in self._hooks.values():
            hook.move(hook.A_module.weight.device)
        if step != self.step:
            self._watch.restart()
            self._use(step)

    def masks(self, step: int) -> dict[str, NDArray[np.bool_]]:
        """Give the step masks of one optimizer step: module name to (r,), True = kept.

        Raises:
            UserError: if the masks are per sample or per token, which belong to no step, or the
                gates are not masks.
        """
        self._require_step_gates()
        return {name: self.law.step_mask(step, name, rank) for name, rank in self.ranks.items()}

    def gates(self, step: int) -> dict[str, NDArray[np.float64]]:
        """Give the gates of one optimizer step, rescaled: module name to (r,), or to (r, r).

        Raises:
            UserError: if the gates are per sample or per token.
        """
        self._require_step_gates()
        return {name: self.law.step_gates(step, name, rank) for name, rank in self.ranks.items()}

    def _require_step_gates(self) -> None:
        if self.law.granularity != "step":
            raise UserError(f"{self.law.granularity} masks are drawn anew in every forward pass")

    @contextlib.contextmanager
    def in_evaluation(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Keep chosen masks or gates on while the model evaluates.

        Args:
            masks: module name to (r,) bool, one mask for all rows, rescaled as the law says; or to
                (r,) float, gates that are taken as they are; of a law that is not diagonal to
                matrices (r, r). Or to K of these, where a batch of K b rows is read as K groups of
                b and group i gets mask i, so that one pass on a repeated batch evaluates an
                ensemble of K masks.

        Raises:
            UserError: if the masks are not exactly those of the masked modules.
        """
        check_gates(masks, self.ranks, diagonal=self.law.diagonal)
        gates = {}
        for name, hook in self._hooks.items():
            chosen = masks[name]
            if chosen.dtype == torch.bool:
                chosen = self.law.at(self.step, name).rescaled(chosen)
            gates[name] = chosen.to(hook.multiplier)
        with chosen_on(self._hooks, gates, mode="evaluation"):
            yield

    @contextlib.contextmanager
    def use(self, gates: Mapping[str, Tensor]) -> Iterator[None]:
        """Train under chosen gates: y = W0 x + scaling * B diag(g) A x, g as it is, no rescale.

        For gradients of several masks in one optimizer step, in any loop:

            for gates in several:
                with mask.use(gates):
                    loss = model(**batch).loss / len(several)
                loss.backward()
            optimizer.step()

        Only forward passes need the context: the recomputation of gradient checkpointing gets the
        gates of its forward pass. A step for which gates were chosen has no single mask, so `kept`
        is empty until the next one. Evaluation is not affected.

        Args:
            gates: module name to (r,), for all examples; or to (K, r), where a batch of K b
                examples is read as K groups of b and group i gets gates i. They may require
                gradients.

        Raises:
            UserError: if the gates are not exactly those of the masked modules, or have another
                shape.
        """
        check_gates(gates, self.ranks, diagonal=self.law.diagonal)
        self.kept = {}
        with chosen_on(self._hooks, gates, mode="training"):
            for hook in self._hooks.values():
                hook.some_chosen = True
            yield

    def _use(self, step: int) -> None:
        self.step = step
        for hook in self._hooks.values():
            hook.begin(step)
        if self.law.granularity != "step":
            return
        masks = self.masks(step) if self.law.binary else {}
        self.kept = {} if self.gates_chosen else masks
        gates = {name: self.law.at(step, name).rescaled(kept) for name, kept in masks.items()}
        gates = gates or self.gates(step)
        for name, hook in self._hooks.items():
            # copy_ keeps the tensor that a compiled graph has seen.
            hook.multiplier.copy_(torch.from_numpy(gates[name]), non_blocking=True)

    def _follow_training(self) -> None:
        """Follow the optimizers that train the masked modules, and the Trainers."""
        from subspace_lab.adapters.trainer_steps import FollowTrainers

        self._watch = OptimizerWatch(
            weights=self._weights,
            forward_seen=lambda: any(hook.calls for hook in self._hooks.values()),
            before=self._before_optimizer_step,
            after=self._after_optimizer_step,
        )
        self._trainers = FollowTrainers(self._trainer_begins)

    def _weights(self) -> list[Tensor]:
        """Give the weights A and B in use: some wrappers replace the parameters."""
        parts = [(hook.A_module, hook.B_module) for hook in self._hooks.values()]
        return [part.weight for pair in parts for part in pair]

    def _before_optimizer_step(self, optimizer: Optimizer) -> None:
        if not self._step_is_certain and (taken := steps_taken(optimizer, self._weights())):
            raise UserError(
                f"the optimizer has taken {taken} steps, but the rank mask uses the masks of step "
                f"{self.step}: call set_step({taken + 1}) before a resumed training continues, or "
                "set_step(1) if the masks begin now"
            )
        self.taken = self.kept, self.gates_chosen
        if self._checked < self.checked_steps:
            self._gradients_seen |= refuse_unmasked(self._hooks.values(), self.kept)

    def _after_optimizer_step(self) -> None:
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass
            self._advance()
        elif not self._advances_soon:  # the backward pass continues under the same masks
            self._advances_soon = True
            Variable._execution_engine.queue_callback(self._advance)

    def _advance(self) -> None:
        self._advances_soon = False
        self._step_is_certain = True
        self._checked += 1
        self._use(self.step + 1)

    def _trainer_begins(self, model: nn.Module, step: int) -> None:
        if find_rank_mask(model) is not self:
            return
        self.set_step(step)
        self._trainer_steps += 1
        if self._trainer_steps == self.checked_steps + 1 and not self._gradients_seen:
            warnings.warn(
                "whether the rank mask is applied was not checked: the gradients of the adapter "
                "are not available (DeepSpeed, sharded parameters)",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what follows the training, which belongs to this object."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_watch", "_trainers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Follow the training of the copied model."""
        self.__dict__.update(state)
        if self.ranks:
            self._follow_training()


def find_rank_mask(model: nn.Module) -> RankMask | None:
    """Find the rank mask that is attached to a model, if there is one."""
    for module in model.modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, MaskHook) and isinstance(hook.owner, RankMask):
                return hook.owner
    return None
