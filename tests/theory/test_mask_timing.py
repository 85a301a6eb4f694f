"""When gates are drawn: dwell, turns, schedules, patterns, and what modules share."""

import pytest

from subspace_lab.theory.laws.schedule import scheduled_keep_prob
from subspace_lab.theory.mask_law import Bernoulli, mask_law

MODULES = ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.0.mlp.up_proj"]


def masks(law, steps, module=MODULES[0], rank=32):
    return [law.step_mask(step, module, rank).tolist() for step in steps]


def test_a_draw_dwells():
    plain, slow = Bernoulli(0.5, seed=1), Bernoulli(0.5, seed=1, dwell=3)
    first = masks(plain, range(1, 4))
    assert masks(slow, range(1, 10)) == [mask for mask in first for _ in range(3)]


def test_two_masks_take_turns():
    law = mask_law(0.5, sampling="two", seed=1)
    assert masks(law, range(1, 7)) == masks(Bernoulli(0.5, seed=1), [1, 2]) * 3


def test_shared_draws_are_those_of_all_modules():
    apart, shared = Bernoulli(0.5), Bernoulli(0.5, shared=True)
    assert len({str(masks(shared, [1], module)) for module in MODULES}) == 1
    assert len({str(masks(apart, [1], module)) for module in MODULES}) == 3


@pytest.mark.parametrize("call", [1, 2])
def test_seeds_of_token_masks_follow_dwell_and_sharing(call):
    def seed(step, module=MODULES[0], process=0, **settings):
        law = Bernoulli(0.5, "token", **settings)
        return law.draw_seed(step, module, call=call, process=process)

    assert seed(1, dwell=2) == seed(2, dwell=2) != seed(3, dwell=2)
    assert seed(1) != seed(2)
    assert seed(1, shared=True) == seed(1, MODULES[1], shared=True)
    assert seed(1) != seed(1, MODULES[1])
    assert seed(1, shared=True) != seed(1, process=1, shared=True)


def test_schedules():
    def q(schedule):
        return [scheduled_keep_prob(0.6, step, schedule, 4) for step in range(1, 7)]

    assert q("constant") == [0.6] * 6
    assert q("linear") == pytest.approx([0.6, 0.7, 0.8, 0.9, 1, 1])
    assert q("early") == [0.6] * 4 + [1] * 2
    assert q("late") == [1] * 4 + [0.6] * 2


def test_masks_follow_the_schedule_and_hold_while_they_dwell():
    law = Bernoulli(0.2, seed=2, schedule="linear", schedule_steps=8)
    drawn = masks(law, range(1, 11), rank=4000)
    share = [sum(mask) / 4000 for mask in drawn]
    assert share == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1], abs=0.04)
    slow = Bernoulli(0.2, seed=2, schedule="linear", schedule_steps=8, dwell=4)
    assert [slow.at(step, "m").keep_prob for step in (1, 4, 5, 8, 9)] == pytest.approx(
        [0.2, 0.2, 0.6, 0.6, 1]
    )
    assert masks(slow, [1], rank=64) == masks(slow, [4], rank=64)


def test_the_rescale_follows_the_schedule():
    law = Bernoulli(0.5, schedule="late", schedule_steps=2)
    assert law.step_gates(2, "m", 8).tolist() == [1.0] * 8
    assert set(law.step_gates(3, "m", 64)) == {0.0, 2.0}


def test_a_pattern_names_modules_as_peft_does():
    law = Bernoulli(0.5, keep_prob_pattern={"q_proj": 0.9, r"layers\.0\.mlp\..*": 0.1})
    assert [law.at(1, module).keep_prob for module in MODULES] == [0.9, 0.9, 0.1]
    assert law.at(1, "layers.0.self_attn.k_proj").keep_prob == 0.5
    assert law.at(1, "layers.0.self_attn.freq_proj").keep_prob == 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"dwell": 2},
        {"shared": True},
        {"schedule": "early", "schedule_steps": 2},
        {"keep_prob_pattern": {"m": 0.2}},
    ],
)
def test_what_makes_draws_dependent_is_named_and_can_be_left_out(settings):
    law = Bernoulli(0.5, seed=4, **settings)
    assert law.dependence
    assert law.one_draw() == Bernoulli(0.5, seed=4)
    assert not law.one_draw().dependence
