"""The rank space against what one would write instead: time, peak memory and error in one run.

    python -m benchmarks.linalg            # some minutes; writes benchmarks/results/linalg.json

Every contestant runs in a process of its own, on one thread, on inputs made from a fixed seed.
`cpu_seconds` is the processor time of the fastest of its repeats, which other programs on the
machine disturb less than `wall_seconds`; ratios are of processor times. `peak_MiB` is how far the
process's largest resident size (getrusage) rose above its size when the inputs were ready: it
sees torch's memory, which tracemalloc does not.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, get_args

import mpmath
import numpy as np
import psutil
import scipy.linalg
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.machine import write_result
from subspace_lab import linalg

Call = Callable[[], Any]
Check = Callable[[Any], dict[str, float]]
MEASURES = get_args(linalg.Measure)

# --- singular values of B A, 4096 x 4096, r = 16, values from 1 to 1e-4, stored in float32 -------


def stored_factors(n: int = 4096, r: int = 16) -> tuple[Tensor, Tensor]:
    U, V = linalg.random_subspace(n, r), linalg.random_subspace(n, r)
    root, gauge = torch.logspace(0, -2, r, dtype=torch.float64), linalg.random_subspace(r, r)
    return (U * root @ gauge).float(), (gauge.T @ (root[:, None] * V.T)).float()


def exact_singular_values(B: Tensor, A: Tensor) -> Tensor:
    """The exact spectrum, sqrt eig(L^T B^T B L) with A A^T = L L^T, at 50 digits."""
    with mpmath.workdps(50):
        b, a = mpmath.matrix(B.tolist()), mpmath.matrix(A.tolist())
        L = mpmath.cholesky(a * a.T)
        squares = mpmath.eigsy(L.T * (b.T * b) * L, eigvals_only=True)
        exact = sorted((float(mpmath.sqrt(v)) for v in squares), reverse=True)
        return torch.tensor(exact, dtype=torch.float64)


def spectrum_contest(compute: Callable[[Tensor, Tensor], Tensor]) -> tuple[Call, Check]:
    B, A = stored_factors()

    def check(sigma: Tensor) -> dict[str, float]:
        error = (sigma[:16].double() / exact_singular_values(B, A) - 1).abs().max()
        return {"largest_relative_error": float(error)}

    return lambda: compute(B, A), check


def spectrum_core() -> tuple[Call, Check]:
    return spectrum_contest(linalg.singular_values)


def spectrum_dense() -> tuple[Call, Check]:
    return spectrum_contest(lambda B, A: torch.linalg.svdvals(B @ A))


def spectrum_svd_lowrank() -> tuple[Call, Check]:
    return spectrum_contest(lambda B, A: torch.svd_lowrank(B @ A, q=16)[1])


# --- angles between successive masks of one frame, n = 4096, r = 32 -------------------------------


def frame_and_masks(steps: int) -> tuple[Tensor, Tensor]:
    return torch.randn(4096, 32, dtype=torch.float64), torch.rand(steps + 1, 32) < 0.5


def shared_angles_check(angles: list[np.ndarray], masks: Tensor) -> dict[str, float]:
    """Directions in both masks have angle 0: the largest of these angles is an error."""
    shared = (masks[:-1] & masks[1:]).sum(-1)
    worst = max(float(theta[:count].max()) for theta, count in zip(angles, shared, strict=True))
    return {"largest_error_of_a_zero_angle": worst, "pairs": len(angles)}


def angles_core() -> tuple[Call, Check]:
    X, masks = frame_and_masks(1000)

    def compute() -> list[np.ndarray]:
        R = linalg.triangular_factor(X)
        return list(linalg.masked_angles(R, masks[:-1], masks[1:]).angles.numpy())

    return compute, lambda angles: shared_angles_check(angles, masks)


def angles_scipy() -> tuple[Call, Check]:
    X, masks = frame_and_masks(20)
    frame, kept = X.numpy(), masks.numpy()

    def compute() -> list[np.ndarray]:
        return [
            scipy.linalg.subspace_angles(frame[:, x], frame[:, y])[::-1]
            for x, y in itertools.pairwise(kept)
        ]

    return compute, lambda angles: shared_angles_check(angles, masks)


def angles_of_a_run() -> tuple[Call, Check]:
    """160 modules x 1,000 steps, from one core per module."""
    modules, steps = 160, 1000
    cores = torch.randn(modules, 32, 32, dtype=torch.float64)
    masks = torch.rand(modules, steps + 1, 32) < 0.5

    def compute() -> None:
        for R, kept in zip(tqdm(cores, desc="modules", leave=False), masks, strict=True):
            linalg.masked_angles(R, kept[:-1], kept[1:])

    return compute, lambda _: {"pairs": modules * steps}


# --- intruder dimensions of a 2048 x 2048 weight --------------------------------------------------


def base_and_update() -> tuple[Tensor, Tensor, Tensor]:
    n, r = 2048, 16
    spectrum = torch.arange(1, n + 1) ** -0.5
    W0 = (torch.linalg.qr(torch.randn(n, n)).Q * spectrum) @ torch.linalg.qr(torch.randn(n, n)).Q
    return W0, torch.randn(n, r) / n**0.5, torch.randn(r, n) / n**0.5


def intruders_lanczos() -> tuple[Call, Check]:
    W0, B, A = base_and_update()
    base = linalg.base_svd(W0)  # the part that is cached once per weight
    return (
        lambda: linalg.intruder_dimensions(W0, B, A, base=base),
        lambda result: {
            "intruders": int(result.intruder.sum()),
            "residual": float(result.residual),
        },
    )


def intruders_base() -> tuple[Call, Check]:
    W0, _, _ = base_and_update()
    return lambda: linalg.base_svd(W0), lambda svd: {"residual": float(svd.residual)}


def intruders_peft() -> tuple[Call, Check]:
    import peft
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    W0, B, A = base_and_update()
    linear = torch.nn.Linear(2048, 2048, bias=False)
    linear.weight.data = W0
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(linear), config)
    layer = model.base_model.model[0]
    layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data = B, A
    lines: list[str] = []
    return (
        lambda: reduce_intruder_dimension(model, logging_sink=lines.append),
        lambda _: {"intruders": int(lines[0].rsplit(" ", 1)[1]) if "Intruders:" in lines[0] else 0},
    )


# --- stable rank of a 2048 x 2048 update ----------------------------------------------------------


def stable_rank_core() -> tuple[Call, Check]:
    B, A = stored_factors(n=2048)
    return (
        lambda: linalg.effective_rank(linalg.singular_values(B, A), measure="stable"),
        lambda rank: {"stable_rank": float(rank)},
    )


def stable_rank_weightwatcher() -> tuple[Call, Check]:
    from weightwatcher import RMT_Util

    B, A = stored_factors(n=2048)
    return (
        lambda: RMT_Util.stable_rank(np.square(RMT_Util.svd_vals((B @ A).numpy()))),
        lambda rank: {"stable_rank": float(rank)},
    )


# --- an adapter of real size: LLaMA-2-7B shapes, seven projections, 32 layers, r = 64 -------------


def audit_of_an_adapter() -> tuple[Call, Check]:
    """Singular values and every effective rank; only the audit is timed, not making the factors."""
    hidden, inner, r = 4096, 11008, 64
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]
    spent = {"audit_cpu_seconds": 0.0, "audit_wall_seconds": 0.0}

    def compute() -> None:
        for m, n in tqdm(shapes * 32, desc="modules", leave=False):
            B, A = torch.randn(m, r), torch.randn(r, n)
            wall, cpu = time.perf_counter(), time.process_time()
            sigma = linalg.singular_values(B, A)
            for measure in MEASURES:
                linalg.effective_rank(sigma, measure=measure)
            spent["audit_cpu_seconds"] += time.process_time() - cpu
            spent["audit_wall_seconds"] += time.perf_counter() - wall

    return compute, lambda _: {"modules": 7 * 32, **spent}


# --- measuring ------------------------------------------------------------------------------------

CONTESTANTS: dict[str, tuple[Callable[[], tuple[Call, Check]], int]] = {
    "singular values: rank space": (spectrum_core, 50),
    "singular values: svdvals(B @ A)": (spectrum_dense, 1),
    "singular values: svd_lowrank(B @ A)": (spectrum_svd_lowrank, 3),
    "mask angles: rank space": (angles_core, 3),
    "mask angles: loop over scipy.linalg.subspace_angles": (angles_scipy, 2),
    "mask angles: 160 modules x 1,000 steps": (angles_of_a_run, 1),
    "intruders: Lanczos, base cached": (intruders_lanczos, 2),
    "intruders: the base, once per weight": (intruders_base, 1),
    "intruders: reduce_intruder_dimension of PEFT": (intruders_peft, 1),
    "stable rank: rank space": (stable_rank_core, 50),
    "stable rank: WeightWatcher": (stable_rank_weightwatcher, 1),
    "audit of a LLaMA-2-7B adapter, r = 64": (audit_of_an_adapter, 1),
}

# The slow side, the fast side, and the ratio that is asked for.
RATIOS = [
    ("singular values: svdvals(B @ A)", "singular values: rank space", 10_000),
    ("mask angles: loop over scipy.linalg.subspace_angles", "mask angles: rank space", 20),
    ("intruders: reduce_intruder_dimension of PEFT", "intruders: Lanczos, base cached", None),
    ("stable rank: WeightWatcher", "stable rank: rank space", None),
]


def measure(name: str) -> dict[str, float]:
    """Run one contestant; called in a fresh process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setup, repeats = CONTESTANTS[name]
    call, check = setup()
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    cpu, wall = (min(times) for times in zip(*seconds, strict=True))
    row = {"cpu_seconds": cpu, "wall_seconds": wall, "peak_MiB": max(peak - before, 0) / 2**20}
    return row | check(result)


def main() -> None:
    names = list(CONTESTANTS)
    if importlib.util.find_spec("weightwatcher") is None:
        names.remove("stable rank: WeightWatcher")
    rows = {}
    progress = tqdm(names)
    for name in progress:
        progress.set_description(name)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            rows[name] = process.submit(measure, name).result()
        numbers = ", ".join(f"{key} {value:.3g}" for key, value in rows[name].items())
        progress.write(f"{name}: {numbers}")

    def per_item(name: str) -> float:
        return rows[name]["cpu_seconds"] / rows[name].get("pairs", 1)

    ratios = {
        f"{slow} / {fast}": {"ratio": per_item(slow) / per_item(fast), "target": target}
        for slow, fast, target in RATIOS
        if slow in rows
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['ratio']:,.0f}")
    print(write_result("linalg", {"rows": rows, "ratios": ratios}))


if __name__ == "__main__":
    main()
