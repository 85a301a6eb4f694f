from __future__ import annotations

import pytest

from subspace_lab.errors import UserError
from subspace_lab.tasks.examples import Example
from subspace_lab.tasks.noise import with_label_noise


def rows() -> list[Example]:
    kinds = [("letters", "abcde"), ("digits", "12345")]
    return [
        Example("demo", f"{kind} {i}", f" {text[i % 5]}", text[i % 5], metadata={"generator": kind})
        for kind, text in kinds
        for i in range(50)
    ]


def test_the_exact_share_of_rows_gets_a_wrong_response_of_its_own_kind() -> None:
    clean, noisy = rows(), with_label_noise(rows(), fraction=0.3, seed=0)
    changed = [i for i in range(100) if noisy[i] != clean[i]]
    assert len(changed) == 30
    for i in changed:
        assert noisy[i].metadata["noisy"]
        assert noisy[i].prompt == clean[i].prompt
        assert noisy[i].answer == clean[i].answer
        assert noisy[i].response != clean[i].response
        assert noisy[i].response.strip().isdigit() == clean[i].answer.isdigit()


def test_noise_depends_on_the_seed_alone() -> None:
    assert with_label_noise(rows(), fraction=0.3, seed=1) == with_label_noise(
        rows(), fraction=0.3, seed=1
    )
    assert with_label_noise(rows(), fraction=0.3, seed=1) != with_label_noise(
        rows(), fraction=0.3, seed=2
    )


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(UserError, match=r"between 0 and 1, not 1\.5"):
        with_label_noise(rows(), fraction=1.5, seed=0)
    with pytest.raises(UserError, match="two different responses among the examples of 'letters'"):
        with_label_noise(rows()[:1], fraction=1.0, seed=0)
