from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from subspace_lab import tasks
from subspace_lab.errors import UserError
from subspace_lab.evaluation.lm_eval_bridge import TASK_FOLDER, evaluate_with_lm_eval
from subspace_lab.evaluation.records import prompt_hash
from subspace_lab.tasks.commonsense import FOLDERS

pytest.importorskip("lm_eval", reason="needs lm-eval")

LABELS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "siqa": ["answer1", "answer2", "answer3"],
    "hellaswag": ["ending1", "ending2", "ending3", "ending4"],
    "winogrande": ["option1", "option2"],
    "arc_easy": ["answer1", "answer2", "answer3", "answer4", "answer5"],
    "arc_challenge": ["answer1", "answer2", "answer3", "answer4"],
    "openbookqa": ["answer1", "answer2", "answer3", "answer4"],
}
TASKS = [f"llm_adapters_{name}" for name in LABELS]
REAL_DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """One hand-made row for each set, in LLM-Adapters' layout; its last label is right."""
    for name, labels in LABELS.items():
        row = {
            "instruction": f"A question of {name}?\n\nAnswer format: {'/'.join(labels)}",
            "input": "",
            "output": f"the correct answer is {labels[-1]}",
            "answer": labels[-1],
        }
        path = tmp_path / "commonsense" / FOLDERS[name] / "test.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([row]))
    return tmp_path


def scores_of(reply, data_dir: Path) -> dict[str, float]:
    """Scores of a model that says `reply(prompt)`, as lm-eval gives them for every set."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Says(LM):
        def generate_until(self, requests):
            return [reply(request.args[0]) for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    manager = TaskManager(
        include_path=str(TASK_FOLDER), include_defaults=False, metadata={"data_dir": str(data_dir)}
    )
    results = simple_evaluate(
        Says(), tasks=["llm_adapters_commonsense"], task_manager=manager, bootstrap_iters=0
    )
    values = {**results["results"], **results["groups"]}
    return {name: row["exact_match,first_match"] for name, row in values.items()}


def last_label(prompt: str) -> str:
    return re.search(r"Answer format: \S*?(\w+)\n", prompt)[1]


def first_label(prompt: str) -> str:
    return re.search(r"Answer format: (\w+)", prompt)[1]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (lambda prompt: f"the correct answer is {last_label(prompt)}", 1.0),
        (lambda prompt: f"{last_label(prompt)}, not {first_label(prompt)}", 1.0),
        (lambda prompt: f"{first_label(prompt)}, not {last_label(prompt)}", 0.0),
        (lambda prompt: "I cannot say.", 0.0),
    ],
    ids=["right", "first match counts", "wrong", "no label"],
)
def test_every_set_scores_its_row_as_the_tasks_do(data_dir, reply, score) -> None:
    assert scores_of(reply, data_dir) == dict.fromkeys([*TASKS, "llm_adapters_commonsense"], score)
    for name in LABELS:
        (row,) = tasks.load(name, "test", data_dir=data_dir)
        assert tasks.score(row, reply(row.prompt)) == score


def test_the_bridge_asks_the_model_the_prompts_of_the_tasks(model, tokenizer, data_dir) -> None:
    model.config.max_position_embeddings = 1024
    results = evaluate_with_lm_eval(
        model.train(), tokenizer, TASKS, data_dir=data_dir, batch_size=3
    )
    assert sorted(results.scores["task"]) == sorted(TASKS)
    assert set(results.scores["metric"]) == {"exact_match"}
    assert set(results.scores["examples"]) == {1}
    hashes = results.records.set_index("task")["prompt_hash"]
    for name in LABELS:
        (row,) = tasks.load(name, "test", data_dir=data_dir)
        assert hashes[f"llm_adapters_{name}"] == prompt_hash(row.prompt)
    assert model.training


def test_the_score_of_a_group_is_the_groups(model, tokenizer, data_dir) -> None:
    model.config.max_position_embeddings = 1024
    for folder in FOLDERS.values():
        path = data_dir / "commonsense" / folder / "test.json"
        path.write_text(json.dumps([*json.loads(path.read_text())] * 2))
    group = "llm_adapters_commonsense"
    results = evaluate_with_lm_eval(model, tokenizer, [group], data_dir=data_dir)
    assert results.scores["task"].iloc[0] != group
    score = results.first_score(group)
    assert (score["task"], score["examples"]) == (group, 2 * len(LABELS))
    assert results.first_score("llm_adapters_boolq")["examples"] == 2
    with pytest.raises(UserError, match="no score of its own: evaluate its tasks, llm_adapters_"):
        results.first_score("another group")


def test_an_unknown_task_is_named(model, tokenizer) -> None:
    with pytest.raises(UserError, match="no task llm_adapters_boolk"):
        evaluate_with_lm_eval(model, tokenizer, ["llm_adapters_boolk"])


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="LLM-Adapters' files are not beside the project")
def test_lm_eval_and_the_tasks_agree_on_published_rows() -> None:
    from lm_eval.tasks import TaskManager

    names = [name for name in LABELS if (REAL_DATA / "commonsense" / FOLDERS[name]).is_dir()]
    manager = TaskManager(
        include_path=str(TASK_FOLDER), include_defaults=False, metadata={"data_dir": str(REAL_DATA)}
    )
    loaded = manager.load([f"llm_adapters_{name}" for name in names])["tasks"]
    for name in names:
        rows = tasks.load(name, "test", data_dir=REAL_DATA)
        docs = loaded[f"llm_adapters_{name}"].test_docs()
        assert [doc["prompt"] for doc in docs] == [row.prompt for row in rows]
        assert [doc["answer"] for doc in docs] == [row.answer for row in rows]
