"""What masks and recording cost, as ratios measured in one process.

    python -m benchmarks.training                      # SmolLM2-135M on this machine's processor
    python -m benchmarks.training --shape llama2-7b    # random weights of that shape, on a GPU

One model takes optimizer steps on one batch (of the demo's task; of random tokens on the GPU)
under each arm in turn, so that a slow moment of the machine hits all arms alike: plain LoRA, step
masks, token masks, LoRA with every step recorded. A ratio is the median over rounds of (arm's time
/ plain time of the same round), with a bootstrap interval. Bytes are those of a recorded step
against an fp32 adapter snapshot.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments

from benchmarks.machine import write_result
from subspace_lab import models, tasks
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.methods import adapt, lora_config
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.training.data import RightPadding, tokenize

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


Batch = dict[str, Any]


def smollm2() -> tuple[torch.nn.Module, int, Batch]:
    base = models.find_base("bundled")
    model, tokenizer = models.load_model(base), models.load_tokenizer(base)
    rows = tokenize(tasks.load("demo", "train", size=8), tokenizer, max_length=512)
    batch = RightPadding(int(tokenizer.pad_token_id))(rows)
    return adapt(model, lora_config(rank=8, alpha=16, targets=TARGETS), seed=0), 8, batch


def llama2_7b() -> tuple[torch.nn.Module, int, Batch]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, config.vocab_size, (8, 512), device="cuda")
    batch = {"input_ids": ids, "labels": ids}
    return adapt(model, lora_config(rank=32, alpha=64, targets=TARGETS), seed=0), 32, batch


SHAPES = {"smollm2": smollm2, "llama2-7b": llama2_7b}


class Steps:
    """Optimizer steps on one model, with a Trainer's callbacks around each."""

    def __init__(self, model: torch.nn.Module, batch: Batch) -> None:
        self.model, self.batch = model.train(), batch
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.mixed = batch["input_ids"].is_cuda

    def time(self, begin: Callable[[], None], end: Callable[[], None]) -> float:
        """Seconds of one step: callbacks, forward, backward and update."""
        self._wait()
        started = time.perf_counter()
        begin()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.mixed):
            loss = self.model(**self.batch, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def nothing() -> None: ...


@contextlib.contextmanager
def masked(model: torch.nn.Module, granularity: Any, step: list[int]) -> Iterator[Any]:
    # The checks belong to the first steps; here every timed step is the first of its mask.
    mask = RankMask(0.5, granularity=granularity, checked_steps=0).attach(model)
    yield lambda: mask.set_step(step[0])
    mask.detach()


def measure(name: str, rounds: int) -> dict[str, Any]:
    model, rank, batch = SHAPES[name]()
    steps, step = Steps(model, batch), [0]
    rows, length = batch["input_ids"].shape
    state = TrainerState(max_steps=10**9, is_world_process_zero=True)
    seconds: dict[str, list[float]] = {"lora": [], "step": [], "token": [], "recorded": []}
    with tempfile.TemporaryDirectory() as folder:
        recorder = SubspaceRecorder(Path(folder) / "run", cores="full")
        arguments = TrainingArguments(output_dir=folder, report_to=[])
        control = TrainerControl()
        recorder.on_train_begin(arguments, state, control, model=model)

        def begin_recorded() -> None:
            state.global_step = step[0] - 1
            recorder.on_step_begin(arguments, state, control)

        def end_recorded() -> None:
            state.global_step = step[0]
            recorder.on_step_end(arguments, state, control)

        for round_ in tqdm(range(-2, rounds), desc=f"steps of {name}", unit="round"):
            step[0] += 1
            found = {"lora": steps.time(nothing, nothing)}
            for granularity in ("step", "token"):
                with masked(model, granularity, step) as set_step:
                    found[granularity] = steps.time(set_step, nothing)
            found["recorded"] = steps.time(begin_recorded, end_recorded)
            if round_ >= 0:  # the first rounds warm up
                for arm, value in found.items():
                    seconds[arm].append(value)
        recorder.on_train_end(arguments, state, control)
        recorded = sum(f.stat().st_size for f in (Path(folder) / "run" / "cores").iterdir())
        snapshot = next((Path(folder) / "run" / "snapshots").rglob("*.safetensors")).stat().st_size
    core_bytes = recorded / (rounds + 3)
    return {
        "shape": {
            "model": name,
            "rank": rank,
            "batch": rows,
            "length": length,
            "targets": TARGETS,
        },
        "rounds": rounds,
        "median_seconds_per_step": {arm: float(np.median(s)) for arm, s in seconds.items()},
        "step_mask_over_lora": ratio(seconds["step"], seconds["lora"]),
        "token_mask_over_lora": ratio(seconds["token"], seconds["lora"]),
        "recorded_over_not": ratio(seconds["recorded"], seconds["lora"]),
        "bytes_per_recorded_step": core_bytes,
        "bytes_per_snapshot": snapshot,
        "recorded_step_over_snapshot": core_bytes / snapshot,
    }


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    ratios = np.array(numerator) / np.array(denominator)
    interval = stats.bootstrap((ratios,), np.median, random_state=0).confidence_interval
    return {
        "median": float(np.median(ratios)),
        "low95": float(interval.low),
        "high95": float(interval.high),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    result = measure(arguments.shape, arguments.rounds)
    for name in ("step_mask_over_lora", "token_mask_over_lora", "recorded_over_not"):
        values = result[name]
        print(f"{name}: {values['median']:.3f} [{values['low95']:.3f}, {values['high95']:.3f}]")
    print(f"recorded step / snapshot, bytes: {result['recorded_step_over_snapshot']:.3f}")
    print("wrote", write_result(f"training-{arguments.shape}", result))


if __name__ == "__main__":
    main()
