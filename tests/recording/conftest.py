"""A small real run: a masked tiny Llama under the HF Trainer, with cores and snapshots."""

from __future__ import annotations

import pytest
from transformers import Trainer, TrainingArguments

from subspace_lab.adapters.mask import RankMask
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from tests.tiny import batch, tiny_lora


def train_tiny(folder, *, steps=6, rank=4, callbacks=(), resume=None, **options):
    """Train a tiny masked LoRA for some steps and record it into `folder`."""
    model = tiny_lora(rank=rank)
    RankMask(0.5, seed=1).attach(model)
    rows = batch(rows=64)["input_ids"]
    schedules = {"cores": "full", "snapshots": "every:1"}
    recorder = SubspaceRecorder(folder, **(schedules | options))
    arguments = TrainingArguments(
        output_dir=f"{folder}/checkpoints",
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[recorder, *callbacks],
    )
    checkpoint = f"{folder}/checkpoints/checkpoint-{resume}" if resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    return model


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train_tiny(folder)
    return Run(folder)
