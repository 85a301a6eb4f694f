"""What masks and recording cost, as ratios measured in one process.

    python -m benchmarks.training                      # SmolLM2-135M on this machine's processor
    python -m benchmarks.training --shape llama2-7b    # random weights of that shape, for a GPU

One model takes optimizer steps on one batch (of the demo's task; of random tokens for the other
shapes) under each arm in turn, so that a slow moment of the machine hits all arms alike: plain
LoRA, step masks and token masks (DropLoRA), LoRA with every step recorded, with every step recorded
and its numbers logged (`log_every`), and with every tenth recorded. A ratio compares an arm with
plain LoRA in the same round (logging: with recording), with a bootstrap interval over rounds: the
median, and for recording every tenth step the mean, since one step in ten bears the cost. Bytes
are those of a recorded step against an fp32 adapter snapshot.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
import warnings
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
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.training.data import RightPadding, tokenize

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


Batch = dict[str, Any]


def smollm2() -> tuple[torch.nn.Module, int, Batch]:
    base = models.find_base("smollm2")
    model, tokenizer = models.load_model(base), models.load_tokenizer(base)
    rows = tokenize(tasks.load("demo", "train", size=8), tokenizer, max_length=512)
    batch = RightPadding(int(tokenizer.pad_token_id))(rows)
    return adapt(model, lora_config(rank=8, alpha=16, targets=TARGETS), seed=0), 8, batch


def random_llama(
    *, rank: int, rows: int, length: int, **sizes: Any
) -> tuple[torch.nn.Module, int, Batch]:
    """A bf16 Llama with random weights and fp32 adapters, made where it computes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = models.preferred_device()
    config = LlamaConfig(**sizes, max_position_embeddings=length, dtype=torch.bfloat16)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, config.vocab_size, (rows, length), device=device)
    adapter = lora_config(rank=rank, alpha=2 * rank, targets=TARGETS)
    return adapt(model, adapter, seed=0), rank, {"input_ids": ids, "labels": ids}


def llama2_7b() -> tuple[torch.nn.Module, int, Batch]:
    return random_llama(
        rank=32,
        rows=8,
        length=512,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )


def tiny() -> tuple[torch.nn.Module, int, Batch]:
    """What `llama2_7b` does, in milliseconds on a processor."""
    return random_llama(
        rank=4,
        rows=2,
        length=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
    )


SHAPES = {"smollm2": smollm2, "llama2-7b": llama2_7b, "tiny": tiny}
RATIOS = (
    "step_mask_over_lora", "token_mask_over_lora", "recorded_over_not", "logged_over_recorded",
    "every_10_over_not",
)  # fmt: skip
ARMS = ("lora", "step", "token", "recorded", "logged", "every_10")


class Steps:
    """Optimizer steps on one model, with a Trainer's callbacks around each."""

    def __init__(self, model: torch.nn.Module, batch: Batch) -> None:
        self.model, self.batch = model.train(), batch
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.device = batch["input_ids"].device
        self.mixed = model.dtype == torch.bfloat16  # a bf16 base under fp32 adapters

    def time(self, begin: Callable[[], None], end: Callable[[], None]) -> float:
        """Seconds of one step: callbacks, forward, backward and update."""
        self._wait()
        started = time.perf_counter()
        begin()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            loss = self.model(**self.batch, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def nothing() -> None: ...


@contextlib.contextmanager
def masked(model: torch.nn.Module, granularity: Any, step: list[int]) -> Iterator[Any]:
    # The checks belong to the first steps; here every timed step is the first of its mask.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # its adapter is trained, on purpose
        mask = RankMask(0.5, granularity=granularity, checked_steps=0).attach(model)
    yield lambda: mask.set_step(step[0])
    mask.detach()


class Recording:
    """A recorder that sees only the steps of its own arm."""

    def __init__(self, model: torch.nn.Module, folder: Path, cores: str, **options: Any) -> None:
        self.folder = folder
        self.recorder = SubspaceRecorder(folder, cores=cores, **options)
        self.recorder.start(model)
        self.taken = 0
        self.begin()

    def begin(self) -> None:
        """Keep the weights, as before a Trainer's step; the optimizer's then changes nothing."""
        self.recorder.on_step_begin(ARGUMENTS, STATE, CONTROL)

    def end(self) -> None:
        """What happens after a step."""
        self.taken += 1
        self.recorder.step(self.taken)

    def time(self, steps: Steps) -> float:
        """Seconds of one step of this arm."""
        seconds = steps.time(self.begin, self.end)
        self.begin()  # so that it does not keep the weights during the steps of other arms
        return seconds

    def finish(self) -> dict[str, float]:
        """Bytes of one recorded step and of one snapshot."""
        self.recorder.finish()
        recorded = sum(file.stat().st_size for file in (self.folder / "cores").iterdir())
        snapshot = next((self.folder / "snapshots").rglob("*.safetensors")).stat().st_size
        per_step = recorded / (self.taken + 1)  # and step 0
        return {
            "bytes_per_recorded_step": per_step,
            "bytes_per_snapshot": snapshot,
            "recorded_step_over_snapshot": per_step / snapshot,
        }


ARGUMENTS = TrainingArguments(report_to=[])
STATE, CONTROL = TrainerState(), TrainerControl()


def measure(name: str, rounds: int, *, warm_up: int = 3) -> dict[str, Any]:
    if rounds % 10:
        raise UserError(f"rounds must be a multiple of 10, for every tenth step, not {rounds}")
    model, rank, batch = SHAPES[name]()
    steps, step = Steps(model, batch), [0]
    rows, length = batch["input_ids"].shape
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    if steps.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        every_step = Recording(model, Path(folder) / "full", "full")
        logged = Recording(model, Path(folder) / "logged", "full", log_every=1)
        every_tenth = Recording(model, Path(folder) / "every_10", "every:10")
        for round_ in tqdm(range(-warm_up, rounds), desc=f"steps of {name}", unit="round"):
            step[0] += 1
            found = {"lora": steps.time(nothing, nothing)}
            for granularity in ("step", "token"):
                with masked(model, granularity, step) as set_step:
                    found[granularity] = steps.time(set_step, nothing)
            arms = {"recorded": every_step, "logged": logged, "every_10": every_tenth}
            found |= {arm: recording.time(steps) for arm, recording in arms.items()}
            if round_ >= 0:
                for arm, value in found.items():
                    seconds[arm].append(value)
        sizes = every_step.finish()
        logged.finish()
        every_tenth.finish()
    return {
        "shape": {
            "model": name,
            "rank": rank,
            "batch": rows,
            "length": length,
            "targets": TARGETS,
            "base_dtype": str(model.dtype).removeprefix("torch."),
        },
        "rounds": rounds,
        "median_seconds_per_step": {arm: float(np.median(s)) for arm, s in seconds.items()},
        "step_mask_over_lora": ratio(seconds["step"], seconds["lora"]),
        "token_mask_over_lora": ratio(seconds["token"], seconds["lora"]),
        "recorded_over_not": ratio(seconds["recorded"], seconds["lora"]),
        "logged_over_recorded": ratio(seconds["logged"], seconds["recorded"]),
        "every_10_over_not": ratio(seconds["every_10"], seconds["lora"], average=np.mean),
        "peak_GiB": torch.cuda.max_memory_allocated() / 2**30
        if steps.device.type == "cuda"
        else None,
        **sizes,
    }


def ratio(
    numerator: list[float], denominator: list[float], average: Callable[..., Any] = np.median
) -> dict[str, float]:
    """The average of the rounds' ratios, with a bootstrap interval."""
    ratios = np.array(numerator) / np.array(denominator)
    interval = stats.bootstrap((ratios,), average, random_state=0).confidence_interval
    return {
        average.__name__: float(average(ratios)),
        "low95": float(interval.low),
        "high95": float(interval.high),
    }


@exit_code_2_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    result = measure(arguments.shape, arguments.rounds)
    for name in RATIOS:
        average, low, high = result[name].values()
        print(f"{name}: {average:.3f} [{low:.3f}, {high:.3f}]")
    print(f"recorded step / snapshot, bytes: {result['recorded_step_over_snapshot']:.3f}")
    print("wrote", write_result(f"training-{arguments.shape}", result))


if __name__ == "__main__":
    main()
