"""The adapted matrices of a model in training, reduced to rank cores."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from subspace_lab.adapters.modules import LoraModule
from subspace_lab.linalg.rank_core import frame_core
from subspace_lab.recording.shape_batches import make_shape_batches
from subspace_lab.runs.stored_cores import frame_arrays


class CoreRecorder:
    """Reduces the live matrices A and B, with their displacements, to rank cores.

    Args:
        modules: the adapted modules.
        initial: (A, B) of each at step 0.
    """

    def __init__(
        self, modules: Sequence[LoraModule], initial: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        self._modules_of_rank: dict[int, list[LoraModule]] = defaultdict(list)
        for module in modules:
            self._modules_of_rank[module.rank].append(module)
        self._batches = make_shape_batches(self._modules_of_rank, initial)

    def keep_weights(self) -> None:
        """Keep the weights that the coming step starts from."""
        for batch in self._batches:
            batch.previous = batch.stacked()

    def arrays(self) -> dict[str, Tensor]:
        """Reduce all matrices: packed arrays `rR/NAME` (modules of rank R, ...)."""
        arrays: dict[str, Tensor] = {}
        with one_thread():
            for batch in self._batches:
                frame = frame_core(batch.stacked(), batch.previous, batch.start)
                for name, values in frame_arrays(batch.side, frame):
                    key = f"r{batch.rank}/{name}"
                    if key not in arrays:
                        count = len(self._modules_of_rank[batch.rank])
                        arrays[key] = values.new_empty(count, *values.shape[1:])
                    arrays[key][batch.places] = values.to(arrays[key].device)
        return arrays


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: waking others costs more than thousands of tiny matrices take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
