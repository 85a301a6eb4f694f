"""Which optimizer step comes next: followed through torch's own hooks around every optimizer step.

The hooks see every loop: the Trainer, accelerate, a loop of one's own. Wrapped optimizers call the
optimizer they wrap, so a step counts once; a step that a gradient scaler skips does not count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class OptimizerWatch:
    """Calls back around each optimizer step of given modules.

    Optimizers that share the modules and step one after the other count as one: another optimizer
    begins a new step only after another forward pass.

    Args:
        modules: the modules, with a `weight` each.
        forward_seen: says whether a forward pass was seen since the last step.
        before: called before a step, with the optimizer.
        after: called after it.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        forward_seen: Callable[[], bool],
        before: Callable[[Optimizer], None],
        after: Callable[[], None],
    ) -> None:
        self._modules = modules
        self._forward_seen = forward_seen
        self._before = before
        self._after = after
        self._running: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._handles = [
            register_optimizer_step_pre_hook(_weakly(self._begin)),
            register_optimizer_step_post_hook(_weakly(self._end)),
        ]
        for handle in self._handles:
            weakref.finalize(self, handle.remove)

    def stop(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def restart(self) -> None:
        """Take the next optimizer step for the first of its kind."""
        self._stepped.clear()

    def _begin(self, optimizer: Optimizer) -> None:
        if self._trains_the_modules(optimizer):
            self._running.add(optimizer)
            if self._is_new_step(optimizer):
                self._before(optimizer)

    def _end(self, optimizer: Optimizer) -> None:
        # A subclass whose `step` calls its parent's is seen twice: the inner call counts.
        if optimizer not in self._running:
            return
        self._running.discard(optimizer)
        is_new = self._is_new_step(optimizer)
        if is_new:
            self._stepped.clear()
        self._stepped.add(optimizer)
        if is_new:
            self._after()

    def _is_new_step(self, optimizer: Optimizer) -> bool:
        return not self._stepped or optimizer in self._stepped or self._forward_seen()

    def _trains_the_modules(self, optimizer: Optimizer) -> bool:
        weights = {id(module.weight) for module in self._modules}
        return any(id(p) in weights for group in optimizer.param_groups for p in group["params"])


def _weakly(method: Callable[[Optimizer], None]) -> Callable[[Optimizer, Any, Any], None]:
    """Make a hook that does not keep the method's object, and with it the model, alive."""
    reference = weakref.WeakMethod(method)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(optimizer)

    return hook


def steps_taken(optimizer: Optimizer, modules: Sequence[nn.Module]) -> int:
    """Give the steps that an optimizer has taken with the modules' weights; 0 if it counts none."""
    counts = [optimizer.state.get(module.weight, {}).get("step", 0) for module in modules]
    return int(max(counts, default=0))
