"""Precision follows a rule that is the same on every machine, and is recorded and compared."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from analyses import paired_differences, paper_tables
from analyses._configurations import repetitions
from analyses.kit import label
from subspace_lab import files, models
from subspace_lab.errors import UserError
from subspace_lab.evaluation import records
from subspace_lab.runs.run import Run
from subspace_lab.tasks import Example
from subspace_lab.trained import load_trained
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import build, train
from tests.training.conftest import make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def small(base: Path, **fields) -> TrainConfig:
    shape = {"steps": 2, "batch_size": 2, "train_size": 8, "rank": 2, "eval_split": "none"}
    return TrainConfig(base=str(base), **shape, **fields)


def test_processors_train_in_fp32_and_record_it(processor, base, tmp_path):
    model, trainer = build(small(base), tmp_path / "run")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not trainer.args.bf16
    trainer.train()
    run = Run(tmp_path / "run")
    assert run.description["provenance"]["base_dtype"] == "float32"
    assert run.description["config"]["base_dtype"] == "auto"
    assert run.config["base_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("gpu", "in_hardware", "name", "expected"),
    [
        (True, True, "tiny", "bf16"),
        (True, False, "tiny", "fp32"),
        (True, True, "pocket", "fp32"),
        (True, True, "the pocket's folder", "fp32"),
        (False, True, "tiny", "fp32"),
    ],
)
def test_auto_is_bf16_on_gpus_that_compute_in_it(
    base, monkeypatch, gpu, in_hardware, name, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: in_hardware)
    places = {"tiny": str(base), "pocket": "pocket", "the pocket's folder": str(models.POCKET)}
    assert models.training_dtype(models.find_base(places[name])) == expected


def test_a_run_in_bf16_says_so_and_is_evaluated_in_fp32(base, tmp_path):
    model, trainer = build(small(base, base_dtype="bf16"), tmp_path / "run")
    assert model.get_base_model().dtype == torch.bfloat16
    assert trainer.args.bf16  # autocast: the same computation on every machine
    trainer.train()
    run = Run(tmp_path / "run")
    assert run.description["provenance"]["base_dtype"] == "bfloat16"
    assert run.config["base_dtype"] == "bf16"
    trained = load_trained(run)
    assert trained.dtype == "fp32"
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
    rounded = load_trained(run, dtype="bf16")
    assert rounded.model.get_base_model().dtype == torch.bfloat16


def test_full_fine_tuning_computes_in_fp32_on_a_gpu_too(base, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "training_dtype", lambda base: "bf16")
    model, trainer = build(small(base, method="full", cores="never"), tmp_path / "run")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not trainer.args.bf16


def test_a_run_is_not_resumed_in_another_dtype(base, tmp_path, monkeypatch):
    config = small(base, checkpoint_every=1)
    train(config, tmp_path / "run")
    description = files.read_json(tmp_path / "run/run.json")
    description["status"] = "running"
    description["provenance"]["base_dtype"] = "bfloat16"  # begun on a GPU
    files.write_json(tmp_path / "run/run.json", description)
    with pytest.raises(UserError, match=r"trained in bfloat16 so far.* is float32 on this machine"):
        train(config, tmp_path / "run", resume=True)
    assert files.read_json(tmp_path / "run/run.json") == description
    files.write_json(tmp_path / "run/run.json", description | {"status": "finished"})
    train(config, tmp_path / "run", resume=True)  # is left as it is


def test_fp32_is_not_tf32(base):
    """Which NVIDIA's containers and training under torch.compile turn on for the whole process."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    models.load_model(models.find_base(str(base)))
    found = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    assert found == "highest"


@pytest.mark.parametrize("load", [models.load_model, models.load_tokenizer])
def test_a_bases_own_code_is_refused_and_not_executed(tmp_path, load, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # should anyone ask
    marker = tmp_path / "executed"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nclass Mine: ...\n"
    (tmp_path / "code.py").write_text(code)
    auto = {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"}
    mine = {"model_type": "mine", "auto_map": auto | {"AutoTokenizer": ["code.Mine", None]}}
    (tmp_path / "config.json").write_text(json.dumps(mine))
    tokenizer = {"tokenizer_class": "Mine", "auto_map": mine["auto_map"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="custom code"):
        load(models.find_base(str(tmp_path)))
    assert not marker.exists()


def evaluated(
    folder: Path, *, dtype: str | None, trained_in: str | None = "float32", **fields
) -> Run:
    """Write a run with an evaluation in a dtype (None: of an earlier version, which named none)."""
    config = TrainConfig(base="meta-llama/Llama-2-7b-hf", **fields).to_dict()
    provenance = {} if trained_in is None else {"provenance": {"base_dtype": trained_in}}
    files.write_json(
        folder / "run.json",
        {"config": config, "modules": [], "status": "finished", "mask": None, **provenance},
    )
    examples = [Example("boolq", f"question {i}", "yes", "yes") for i in range(4)]
    yes = ["yes"] * 4
    table = records.example_records(
        examples, gold=yes, prediction=yes, correct=[True, False, True, True]
    )
    settings = {"split": "test"} | ({} if dtype is None else {"dtype": dtype})
    records.write(
        folder, table, records.summarise(table, task="boolq", metric="generated", settings=settings)
    )
    return Run(folder)


@pytest.mark.parametrize("compute", [paired_differences.compute, paper_tables.compute])
@pytest.mark.parametrize(
    ("dtypes", "words"),
    [
        (("fp32", "bf16"), "boolq was evaluated with dtype fp32 in .* and bf16 in .*: evaluate"),
        ((None, "fp32"), "boolq was evaluated with dtype unknown in .* and fp32 in .*: evaluate"),
        (("fp32", "fp32"), None),
        ((None, None), None),
    ],
)
def test_scores_in_different_dtypes_are_not_compared(tmp_path, compute, dtypes, words):
    runs = [
        evaluated(tmp_path / f"{method}-{seed}", dtype=dtype, method=method, seed=seed)
        for method, dtype in zip(("lora", "dora"), dtypes, strict=True)
        for seed in (0, 1)
    ]
    if words is None:
        assert not compute(runs).empty
    else:
        with pytest.raises(UserError, match=words):
            compute(runs)


def test_runs_trained_in_different_dtypes_are_no_repetitions(tmp_path):
    trained = [
        ("float32", "auto"), ("float32", "fp32"), ("bfloat16", "auto"), ("bfloat16", "bf16"),
        (None, "auto"),
    ]  # fmt: skip
    runs = {
        (used, asked): evaluated(
            tmp_path / f"{used}-{asked}", dtype="fp32", trained_in=used, base_dtype=asked, seed=seed
        )
        for seed, (used, asked) in enumerate(trained)
    }
    groups = [{run.config["base_dtype"] for run in group} for group in repetitions(runs.values())]
    assert groups == [{"fp32"}, {"bf16"}, {"auto"}]
    table = pd.DataFrame({"run": [run.name for run in runs.values()]})
    labelled = label(table, list(runs.values()))["configuration"]
    texts = {key: str(text) for key, text in zip(runs, labelled, strict=True)}
    for (one, text), (other, others) in itertools.combinations(texts.items(), 2):
        assert (text == others) == (one[0] == other[0])
    assert "base_dtype bf16" in texts["bfloat16", "auto"]
