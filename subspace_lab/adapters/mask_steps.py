"""Which optimizer step comes next: followed through torch's own hooks around every optimizer step.

The hooks see every loop: the Trainer, accelerate, a loop of one's own. Wrapped optimizers call the
optimizer they wrap, so a step counts once; a step that a gradient scaler skips does not count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class OptimizerWatch:
    """Calls back around each optimizer step of given weights.

    Optimizers that share the weights and step one after the other count as one: another optimizer
    begins a new step only after another forward pass.

    Args:
        weights: returns the weights.
        forward_seen: returns whether a forward pass was seen since the last step.
        before: called before a step, with the optimizer.
        after: called after it.
    """

    def __init__(
        self,
        *,
        weights: Callable[[], list[Tensor]],
        forward_seen: Callable[[], bool],
        before: Callable[[Optimizer], None],
        after: Callable[[], None],
    ) -> None:
        self._weights = weights
        self._forward_seen = forward_seen
        self._before = before
        self._after = after
        self._running: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        _WATCHES.add(self)

    def stop(self) -> None:
        """Stop watching."""
        _WATCHES.discard(self)

    def restart(self) -> None:
        """Count the next optimizer step as a new one."""
        self._stepped.clear()

    def begin(self, optimizer: Optimizer) -> None:
        """Note that an optimizer is about to step."""
        if self._trains_the_weights(optimizer):
            self._running.add(optimizer)
            if self._is_new_step(optimizer):
                self._before(optimizer)

    def end(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has stepped."""
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

    def _trains_the_weights(self, optimizer: Optimizer) -> bool:
        weights = {id(weight) for weight in self._weights()}
        return any(id(p) in weights for group in optimizer.param_groups for p in group["params"])


_WATCHES: weakref.WeakSet[OptimizerWatch] = weakref.WeakSet()  # keeps no model alive


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a step may be compiled
def _begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for watch in list(_WATCHES):
        watch.begin(optimizer)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for watch in list(_WATCHES):
        watch.end(optimizer)


register_optimizer_step_pre_hook(_begin)
register_optimizer_step_post_hook(_end)


def steps_taken(optimizer: Optimizer, weights: list[Tensor]) -> int:
    """Return the steps that an optimizer has taken with weights; 0 if it counts none."""
    counts = [optimizer.state.get(weight, {}).get("step", 0) for weight in weights]
    return int(max(counts, default=0))
