"""The evaluate command on a small run: what it writes, against independent counts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from subspace_lab import evaluate, files, tasks
from subspace_lab.evaluation.lm_eval_bridge import LmEvalResults
from subspace_lab.evaluation.records import prompt_hash
from subspace_lab.models import POCKET
from subspace_lab.stats.intervals import accuracy_interval
from subspace_lab.tasks.commonsense import FOLDERS
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train
from tests.evaluation.stand_in import StandIn, write_material

STEPS, ROWS, SEED = 12, 18, 3
EXACT = ("--metric", "exact_match")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of a few steps on the pocket task, of a seed and difficulty of its own."""
    out = tmp_path_factory.mktemp("runs") / "run"
    rows: dict[str, Any] = {"difficulty": "medium", "eval_size": ROWS, "eval_split": "test"}
    rows["seed"] = SEED
    config = TrainConfig(**rows, train_size=96, steps=STEPS, learning_rate=5e-3, base_dtype="fp32")
    train(config, out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., str]:
    """Run the command in this process; give what it printed."""

    def call(run: Path, *arguments: object) -> str:
        told = ["evaluate", "--run", str(run), "--tasks", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", told)
        evaluate.main()
        return capsys.readouterr().out

    return call


def table(run: Path, name: str) -> pd.DataFrame:
    return files.read_table(run / "evaluations" / f"{name}.parquet")


def summaries(run: Path, part: str = "") -> dict[str, dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (run / "evaluations" / part / "summary.json").read_text()
    return json.loads(text, parse_constant=refuse)


def hashes(examples: list[tasks.Example]) -> list[str]:
    return [prompt_hash(example.prompt) for example in examples]


def write_boolq(folder: Path, count: int) -> Path:
    rows = [
        {
            "instruction": f"Is {i} odd?\n\nAnswer format: true/false",
            "output": f"the correct answer is {'true' if i % 2 else 'false'}",
        }
        for i in range(count)
    ]
    path = folder / "commonsense" / FOLDERS["boolq"] / "test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    return folder


@pytest.mark.usefixtures("processor")
def test_a_runs_own_task_is_scored_as_its_training_scored_it(run, command):
    said = command(run, "pocket", *EXACT, "--batch_size", 5)
    found, row = table(run, "pocket"), summaries(run)["pocket"]
    measured = files.read_table(run / "metrics.parquet").set_index("step").loc[STEPS]
    assert 0 < row["value"] < 1
    assert row["value"] == measured["eval_exact_match"] == found["correct"].mean()
    assert row["examples"] == len(found) == measured["eval_examples"] == ROWS
    loss = (found["loss"] * found["tokens"]).sum() / found["tokens"].sum()
    assert loss == pytest.approx(measured["eval_response_loss"], rel=1e-5)
    wilson = accuracy_interval(int(found["correct"].sum()), ROWS)
    assert (row["low"], row["high"]) == (wilson.low, wilson.high)
    interval = f"[{wilson.low:.4f}, {wilson.high:.4f}] (95 %)"
    assert f"exact_match {row['value']:.4f} {interval}, n = {ROWS}" in said
    calibration = row["calibration"]
    assert 0 < calibration["oracle_loss"] <= loss * (1 + 1e-5) and 0 < calibration["ece"] < 1
    assert f"  ece {calibration['ece']:.4g}, brier {calibration['brier']:.4g}, oracle_temp" in said


def test_validation_chooses_the_temperature_of_the_loss_on_test_examples(run, command):
    command(run, "pocket", *EXACT, "--split", "validation", "--examples", 8)
    (chosen,) = [one["calibration"] for one in summaries(run, "validation").values()]
    command(run, "pocket", *EXACT)
    plain = summaries(run)["pocket"]["calibration"]
    command(run, "pocket", *EXACT, "--validation", 8)
    calibration = summaries(run)["pocket"]["calibration"]
    assert calibration["temperature"] == chosen["oracle_temperature"] != plain["oracle_temperature"]
    assert plain["oracle_loss"] < calibration["calibrated_loss"] < 4 * plain["oracle_loss"]
    assert calibration["calibrated_brier"] != plain["brier"]
    assert plain.items() <= calibration.items()


@pytest.mark.usefixtures("processor")
def test_generated_answers_are_counted_right_whatever_the_batch_size(run, command):
    command(run, "pocket", "--batch_size", 1)
    alone = table(run, "pocket")
    command(run, "pocket", "--batch_size", 7)
    pd.testing.assert_frame_equal(table(run, "pocket"), alone)
    right = [
        text.strip().split("\n")[0].strip() == gold
        for text, gold in zip(alone["prediction"], alone["gold"], strict=True)
    ]
    assert alone["correct"].tolist() == right
    assert summaries(run)["pocket"]["value"] == sum(right) / ROWS
    assert summaries(run)["pocket"]["calibration"] == {}  # generated text has no probabilities
    assert not (run / "evaluations" / "replaced").exists()


def test_examples_are_one_set_for_all_seeds_unless_the_command_line_says_otherwise(run, command):
    command(run, "pocket", *EXACT)
    fixed = tasks.load("pocket", "test", size=ROWS, seed=0, difficulty="medium")
    assert table(run, "pocket")["prompt_hash"].tolist() == hashes(fixed)
    alike = summaries(run)["pocket"]["settings"]
    command(run, "pocket", *EXACT, "--seed", 0)
    assert summaries(run)["pocket"]["settings"] == alike
    command(run, "pocket", *EXACT, "--seed", SEED, "--difficulty", "hard", "--examples", 4)
    other = tasks.load("pocket", "test", size=4, seed=SEED, difficulty="hard")
    assert table(run, "pocket")["prompt_hash"].tolist() == hashes(other)
    settings = summaries(run)["pocket"]["settings"]
    assert settings == {**alike, "examples": 4, "seed": SEED, "difficulty": "hard"}


def test_the_dtype_is_part_of_how_a_task_was_measured(run, command):
    command(run, "pocket", *EXACT)
    exact, loss = summaries(run)["pocket"], table(run, "pocket")["loss"]
    assert exact["settings"]["dtype"] == "fp32"
    said = command(run, "pocket", *EXACT, "--dtype", "bf16")
    assert summaries(run)["pocket"]["settings"]["dtype"] == "bf16"
    assert 1e-4 < (table(run, "pocket")["loss"] - loss).abs().max() < 0.5
    (kept,) = (run / "evaluations" / "replaced").glob("*.json")
    assert files.read_json(kept) == exact
    assert str(kept.with_suffix(".parquet")) in said


def test_an_evaluation_of_an_earlier_version_is_kept_apart(run, command):
    """Its dtype, which the machine chose, is not known."""
    command(run, "pocket", *EXACT)
    earlier = summaries(run)
    del earlier["pocket"]["settings"]["dtype"]
    files.write_json(run / "evaluations" / "summary.json", earlier)
    command(run, "pocket", *EXACT)
    (kept,) = (run / "evaluations" / "replaced").glob("*.json")
    assert files.read_json(kept) == earlier["pocket"]


GAUGES = {
    "as it is": lambda B, A: torch.eye(B.shape[1], dtype=B.dtype),
    "mixed": lambda B, A: torch.tensor([[1.0, 2, 0], [0, 1, -3], [2, 0, 1]], dtype=B.dtype),
    "of unequal scale": lambda B, A: torch.diag(torch.tensor([30.0, 1, 0.1], dtype=B.dtype)),
    "singular vectors": lambda B, A: torch.linalg.svd(A @ A.T)[0],
}
"""G (r, r) of (B G)(G^-1 A), which is the same update for every invertible G."""


@pytest.mark.usefixtures("processor")
def test_the_loss_of_an_update_does_not_depend_on_its_gauge(command, tmp_path):
    lora = LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(POCKET), lora).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")

    def loss_in(gauge: Callable[..., torch.Tensor], *options: str) -> float:
        moved = {}
        for name in (name for name in weights if "lora_A" in name):
            generator = torch.Generator().manual_seed(len(moved))
            shapes = weights[name.replace("lora_A", "lora_B")].shape, weights[name].shape
            B, A = (0.1 * torch.randn(s, generator=generator).double() for s in shapes)
            G = gauge(B, A)
            moved[name.replace("lora_A", "lora_B")] = (B @ G).float()
            moved[name] = torch.linalg.solve(G, A).float().contiguous()
        save_file(moved, tmp_path / "adapter_model.safetensors")
        command(tmp_path, "pocket", *EXACT, "--base", "pocket", "--examples", 16, *options)
        scored = table(tmp_path, "pocket")
        return float((scored["loss"] * scored["tokens"]).sum() / scored["tokens"].sum())

    losses = [loss_in(gauge) for gauge in GAUGES.values()]
    assert losses == pytest.approx([losses[0]] * len(GAUGES), abs=1e-5)
    # The same in bf16: what the default must not do.
    assert abs(loss_in(GAUGES["mixed"], "--dtype", "bf16") - losses[0]) > 1e-4


def test_an_adapter_folder_knows_no_rows_of_its_own(run, command):
    adapter = run / "snapshots" / f"step-{STEPS:06d}"
    command(adapter, "pocket", *EXACT, "--base", "pocket")
    found = table(adapter, "pocket")
    assert found["prompt_hash"].tolist() == hashes(tasks.load("pocket", "test"))


def test_the_data_folder_is_the_runs_and_a_mixture_shares_its_rows(run, command, tmp_path):
    description = files.read_json(run / "run.json")
    description["config"]["data_dir"] = str(write_boolq(tmp_path / "data", 9))
    files.write_json(run / "run.json", description)
    command(run, "boolq", "boolq+pocket", *EXACT, "--examples", 5)
    assert len(table(run, "boolq")) == 5
    mixed = table(run, "boolq+pocket")
    assert mixed["task"].tolist() == ["boolq"] * 3 + ["pocket"] * 2
    boolq = tasks.load("boolq", "test", data_dir=tmp_path / "data")
    assert mixed["prompt_hash"].tolist()[:3] == hashes(boolq[:3])
    assert summaries(run)["boolq+pocket"]["examples"] == 5


def test_the_hub_can_be_asked_for_instead_of_the_runs_data_folder(run, command, monkeypatch):
    description = files.read_json(run / "run.json")
    description["config"]["data_dir"] = "./nowhere"
    files.write_json(run / "run.json", description)
    question = "Is it?\n\nAnswer format: true/false"
    row = {"instruction": question, "output": "the correct answer is true"}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [row])
    command(run, "boolq", *EXACT, "--data_dir", "hub")
    assert table(run, "boolq")["gold"].tolist() == [row["output"]]


def test_no_result_is_lost_to_another(run, command, tmp_path):
    data = ["--data_dir", write_boolq(tmp_path / "data", 3)]
    command(run, "pocket", *EXACT)
    first, first_table = summaries(run)["pocket"], table(run, "pocket")

    command(run, "boolq", *EXACT, *data)
    command(run, "pocket", *EXACT, "--step", 0)
    command(run, "pocket", *EXACT, "--split", "validation", "--step", STEPS)
    assert list(summaries(run)) == ["pocket", "boolq"]
    assert summaries(run)["pocket"] == first
    assert summaries(run, "step-0")["pocket"]["step"] == 0
    assert summaries(run, "validation")["pocket"]["settings"]["split"] == "validation"

    said = command(run, "pocket", *EXACT, "--examples", 2)
    assert summaries(run)["pocket"]["examples"] == len(table(run, "pocket")) == 2
    (kept,) = (run / "evaluations" / "replaced").glob("*.json")
    assert f"{kept.with_suffix('.parquet')}" in said
    assert files.read_json(kept) == first
    pd.testing.assert_frame_equal(files.read_table(kept.with_suffix(".parquet")), first_table)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.0, 0.0, "acc 0.0000 [0.0000, 0.0876] (95 %), n = 40"),
        (0.5, 0.08, "acc 0.5000 ± 0.0800, n = 40"),
    ],
)
def test_lm_eval_at_0_percent_has_an_interval(run, command, monkeypatch, value, error, said):
    score = {"task": "piqa", "filter": "none", "metric": "acc", "value": value}
    scores = pd.DataFrame([{**score, "standard_error": error, "examples": 40}])
    results = LmEvalResults(scores=scores, records=pd.DataFrame({"task": ["piqa"]}))
    monkeypatch.setattr(
        "subspace_lab.evaluation.lm_eval_bridge.evaluate_with_lm_eval", lambda *_, **__: results
    )
    assert f"lm_eval:piqa: {said}" in command(run, "lm_eval:piqa")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pocket", "--examples", "0"], ["--examples", "at least 1"]),
        (["pocket", "--examples", "-1"], ["--examples", "at least 1"]),
        (["pocket", "--batch_size", "0"], ["--batch_size", "at least 1"]),
        (["pocket", "--max_new_tokens", "0"], ["--max_new_tokens", "at least 1"]),
        (["pocket+cooking"], ["'cooking'", "lm_eval:NAME"]),
        (["pocket", "--difficulty", "odd"], ["'odd'"]),
        (["pocket", "--step", "5"], ["step 5"]),
        (["pocket", "boolq", "--data_dir", "./nowhere"], ["nowhere"]),
        (["pocket", "mt_bench"], ["--judge"]),
        (["mt_bench", "--split", "validation", "--judge", "j"], ["--split", "mt_bench"]),
        (["humaneval", "--metric", "exact_match"], ["--metric", "humaneval"]),
        (["pocket", "--validation", "8"], ["--validation", "--metric"]),
        (["lm_eval:piqa", "--metric", "likelihood"], ["--metric", "lm_eval:piqa"]),
        (["lm_eval:piqa", "--max_new_tokens", "9"], ["--max_new_tokens", "lm_eval:piqa"]),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_evaluated(
    run, command, capsys, arguments, words
):
    with pytest.raises(SystemExit) as ended:
        command(run, *arguments)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert ended.value.code == 2
    assert all(word in said for word in words), said
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize(
    ("metric", "bar"), [("generated", "generating"), ("exact_match", "scoring")]
)
def test_what_takes_long_shows_its_progress(run, monkeypatch, capsys, metric, bar):
    told = ["evaluate", "--run", str(run), "--tasks", "pocket", "--metric", metric]
    monkeypatch.setattr(sys, "argv", told)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    evaluate.main()
    assert f"{bar}: 100%" in capsys.readouterr().err


def test_programs_are_refused_in_a_mixture_before_any_is_generated(run, command, capsys, tmp_path):
    (tmp_path / "code").mkdir()
    problem = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass"}
    (tmp_path / "code" / "humaneval_test.jsonl").write_text(json.dumps(problem))
    with pytest.raises(SystemExit):
        command(run, "pocket+humaneval", "--data_dir", tmp_path)
    assert "scored by running programs" in capsys.readouterr().err


def test_a_trial_of_mt_bench_does_not_stand_in_the_whole_ones_way(
    run, command, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    judge = StandIn()
    options = ["--questions", write_material(tmp_path), "--max_new_tokens", 2]
    options += ["--judge", "stand-in", "--judge_url", judge.url]
    judge.behave = lambda _, body: (200, "[[4]]" if "again" not in str(body) else "Hm.")
    command(run, "mt_bench", *options, "--examples", 1)
    row = summaries(run)["mt_bench"]
    assert (row["value"], row["standard_error"], row["examples"]) == (4.0, None, 1)
    assert row["settings"]["second_turn"] is None
    judge.behave = lambda _, body: (200, "[[8]]")
    command(run, "mt_bench", *options)
    row = summaries(run)["mt_bench"]
    assert row["examples"] == table(run, "mt_bench")["question_id"].nunique() == 3
    assert row["value"] == table(run, "mt_bench")["score"].mean()

    options[options.index("stand-in")] = "silent"
    judge.behave = lambda _, body: (200, "Hm.")
    with pytest.raises(SystemExit):
        command(run, "mt_bench", *options)
    assert "contained a score" in capsys.readouterr().err
    assert summaries(run)["mt_bench"] == row
    judge.server.shutdown()
    judge.server.server_close()


def test_several_runs_are_evaluated_each_into_itself(run, command, tmp_path):
    """The second run's adapter is that of step 0, so its answers are the base's."""
    other = Path(shutil.copytree(run, tmp_path / "start"))
    shutil.rmtree(other / f"snapshots/step-{STEPS:06d}")
    command(tmp_path / "[rs]*", "pocket", *EXACT)
    trained, base = (
        pd.read_parquet(folder / "evaluations/pocket.parquet") for folder in (run, other)
    )
    assert list(trained["prompt_hash"]) == list(base["prompt_hash"])
    assert trained["loss"].mean() < base["loss"].mean()
    command(other, "pocket", *EXACT)
    pd.testing.assert_frame_equal(
        pd.read_parquet(other / "evaluations/pocket.parquet"), base, check_exact=True
    )


def test_a_run_that_cannot_be_evaluated_does_not_keep_the_others_from_it(
    run, tmp_path, monkeypatch, capsys
):
    """The runs come by two flags and a glob; what lies beside them holds no run."""
    for name in ("broken", "last"):
        shutil.copytree(run, tmp_path / name)
    shutil.rmtree(tmp_path / "broken" / "snapshots")
    (tmp_path / "logs").mkdir()
    broken, logs, others = (str(tmp_path / name) for name in ("broken", "logs", "[lr]*"))
    told = ["evaluate", "--run", broken, logs, "--run", others, "--tasks", "pocket", *EXACT]
    monkeypatch.setattr(sys, "argv", [*told, "--examples", "2"])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert f"skipped, since they hold no run: {logs}" in err
    places = [line for line in out.splitlines() if line.endswith("of 3)")]
    assert places == [
        f"{tmp_path / name} ({place} of 3)"
        for place, name in enumerate(("broken", "last", "run"), 1)
    ]
    first, last = [line for line in err.splitlines() if line.startswith("error:")]
    assert "broken has no saved adapters" in first
    assert last == f"error: 1 of 3 runs could not be evaluated: {broken}"
    assert summaries(tmp_path / "last")["pocket"]["value"] == summaries(run)["pocket"]["value"]
