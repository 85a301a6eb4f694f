"""TRL's SFTTrainer with the recorder as a callback: recorded, masked, logged, resumed."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig

from subspace_lab import models
from subspace_lab.adapters.mask import RankMask, find_rank_mask
from subspace_lab.recording.recorder import SubspaceRecorder
from subspace_lab.runs.run import Run
from tests.tiny import StopAfter

trl = pytest.importorskip("trl", reason="needs trl")


def sft_trainer(folder, *callbacks, **options):
    base = models.find_base("pocket")
    trainer = trl.SFTTrainer(
        model=models.load_model(base),
        args=trl.SFTConfig(
            str(folder / "trainer"), max_steps=4, per_device_train_batch_size=2, save_steps=2,
            logging_steps=1, report_to=[], disable_tqdm=True, max_length=32,
            gradient_checkpointing=False, bf16=False,
        ),
        train_dataset=Dataset.from_list([{"text": f"{i} + 1 = {i + 1}"} for i in range(16)]),
        processing_class=models.load_tokenizer(base),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    RankMask(0.5, seed=0).attach(trainer.model)
    trainer.add_callback(SubspaceRecorder(folder / "run", **options))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def test_sft_trainer_is_recorded_logged_and_resumed(tmp_path):
    sft_trainer(tmp_path, StopAfter(3), log_every=2).train()
    trainer = sft_trainer(tmp_path, log_every=2)
    trainer.train(resume_from_checkpoint=True)
    run = Run(tmp_path / "run")
    assert run.finished and run.steps == [0, 1, 2, 3, 4]
    assert run.metrics["loss"].notna().all()
    law = find_rank_mask(trainer.model).law
    for module in run.modules["module"]:
        expected = [law.step_mask(t, module, 4).tolist() for t in range(1, 5)]
        assert run.masks(module)[1].tolist() == expected
    (logged,) = (entry for entry in trainer.state.log_history if entry["step"] == 4
                 and "effective_rank" in entry)  # fmt: skip
    shares = [run.mask(4, module).mean() for module in run.modules["module"]]
    assert "loss" in logged and logged["kept_share"] == np.median(shares)
