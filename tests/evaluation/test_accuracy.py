from __future__ import annotations

from subspace_lab import tasks
from subspace_lab.evaluation import accuracy


def test_generated_answers_are_scored_by_the_task(model, tokenizer, monkeypatch) -> None:
    rows = tasks.load("demo", "test", size=4, seed=0)
    records = accuracy.generated_accuracy(model, tokenizer, rows, max_new_tokens=4, batch_size=2)
    assert records["gold"].tolist() == [row.answer for row in rows]
    assert not records["correct"].any()

    monkeypatch.setattr(accuracy, "generate", lambda *_, **__: [row.response for row in rows])
    assert accuracy.generated_accuracy(model, tokenizer, rows, max_new_tokens=4)["correct"].all()
