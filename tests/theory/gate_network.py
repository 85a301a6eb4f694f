"""A small network with gates, for the tests of what random gates do to it."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

TOKENS, WIDTH, RANK, CLASSES = 4, 5, 3, 6


class Network:
    """Two adapted layers with gates between A and B; attention in between, or tanh."""

    def __init__(self, *, attention, strength=1.0, seed=0):
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=draw) / shape[-1] ** 0.5

        self.attention = attention
        self.x = normal(TOKENS, WIDTH) * WIDTH**0.5
        self.labels = torch.randint(CLASSES, (TOKENS,), generator=draw)
        self.W = [normal(WIDTH, WIDTH), normal(CLASSES, WIDTH)]
        self.B = [strength * normal(WIDTH, RANK), strength * normal(CLASSES, RANK)]
        self.A = [normal(RANK, WIDTH), normal(RANK, WIDTH)]

    def layer(self, index, x, gate):
        W, B, A = self.W[index], self.B[index], self.A[index]
        return x @ W.T + (gate * (x @ A.T)) @ B.T

    def logits(self, first, second):
        h = self.layer(0, self.x, first)
        h = torch.softmax(h @ h.T, -1) @ h if self.attention else torch.tanh(h)
        return self.layer(1, h, second)

    def output_loss(self, logits):
        return cross_entropy(logits, self.labels)

    def __call__(self, first, second):
        return self.output_loss(self.logits(first, second))


def ones(*shape):
    return [torch.ones(shape, dtype=torch.float64) for _ in range(2)]


STEP, TOKEN = ones(RANK), ones(TOKENS, RANK)
