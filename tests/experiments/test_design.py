"""Designs list each run once, at the rates that were chosen for it."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from experiments.design import DESIGNS, Design, part_of, read_design
from experiments.running import make_jobs, own_rates
from subspace_lab.errors import UserError

NAMES = sorted(file.stem for file in DESIGNS.glob("*.yaml") if file.stem != "bench")


def some_rates(design: Design) -> dict[tuple[str, str], float]:
    """Give the baseline another rate than all others, in every regime."""
    places = {design.rate_place(r, a) for r, arms in design.arms_of.items() for a in arms}
    places |= {design.rate_place(r, design.baseline) for r in design.arms_of}
    return {(regime, arm): 1e-3 if arm == design.baseline else 4e-3 for regime, arm in places}


@pytest.mark.parametrize("name", NAMES)
def test_every_run_is_a_valid_configuration_of_its_own(name):
    design = read_design(name)
    cells = [*design.rate_cells(), *design.final_cells(some_rates(design))]
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    few = list({(cell.regime, cell.arm): cell for cell in cells}.values())
    jobs = make_jobs(design, few)
    settings = [job.config.to_dict() for job in jobs]
    assert len({str(sorted(s.items(), key=str)) for s in settings}) == len(few)
    for cell, job in zip(few, jobs, strict=True):
        assert job.config.learning_rate == cell.learning_rate
        assert job.config.seed == cell.fields["seed"]
        assert job.config.masked == (not cell.arm.startswith("LoRA"))


@pytest.mark.parametrize("name", NAMES)
def test_no_seed_both_chooses_a_rate_and_is_compared(name):
    design = read_design(name)
    assert not {*design.rate_seeds} & {*design.seeds}


def test_an_arm_is_trained_at_its_own_rate_and_where_asked_at_the_baselines():
    design = read_design("x1")
    own = some_rates(design)
    assert design.rates_at("A", "step", own) == {"own": 4e-3, "equal": 1e-3}
    assert design.rates_at("A", "masks-8", own) == {"own": 4e-3}
    assert design.rates_at("A", "LoRA", own) == {"own": 1e-3, "equal": 1e-3}
    rates = {c.learning_rate for c in design.final_cells(own) if c.arm == "step"}
    assert rates == {1e-3, 4e-3}


def test_an_arm_may_take_the_rate_of_another_one():
    design = read_design("x1")
    own = some_rates(design) | {("B", "step"): 8e-3}
    assert design.rates_at("B", "masks-32", own) == {"own": 8e-3}
    assert not any(cell.arm == "masks-32" for cell in design.rate_cells())
    of_x6 = read_design("x6")
    assert {cell.arm for cell in of_x6.rate_cells()} == {"LoRA"}
    assert of_x6.rates_at("A-long", "step", {("A", "LoRA"): 2e-3}) == {"own": 2e-3}
    assert (
        of_x6.rates_at("A", "step-sgd", {})["own"] == of_x6.arms["step-sgd"].fields["learning_rate"]
    )


def test_experiments_share_the_runs_that_they_have_in_common():
    first, second = (read_design(name) for name in ("x1", "x2"))
    own = some_rates(first) | some_rates(second)
    common = {c.name for c in first.final_cells(own)} & {c.name for c in second.final_cells(own)}
    assert {name.split(",")[1] for name in common} == {"LoRA", "step"}
    jobs = [
        {job.name: job.arguments for job in make_jobs(d, d.final_cells(own))}
        for d in (first, second)
    ]
    assert all(jobs[0][name] == jobs[1][name] for name in common)


def test_experiments_share_the_runs_from_which_rates_are_chosen():
    jobs: dict[str, tuple[str, ...]] = {}
    for name in ("x1", "x6"):
        design = read_design(name)
        for job in make_jobs(design, design.rate_cells()):
            assert jobs.setdefault(job.name, job.arguments) == job.arguments


def test_a_repeated_arm_differs_in_its_mask_seed_only():
    design = read_design("x6")
    cells = [
        cell
        for cell in design.final_cells(dict.fromkeys(some_rates(design), 1e-3))
        if (cell.regime, cell.arm, cell.fields["seed"]) == ("A", "step", 20)
    ]
    assert [cell.fields["mask_seed"] for cell in cells] == list(range(200, 208))
    configs = [job.config for job in make_jobs(design, cells)]
    first, *others = (dataclasses.replace(config, mask_seed=0) for config in configs)
    assert all(other == first for other in others)


def test_a_diverged_rate_is_never_chosen_and_a_tie_goes_to_the_lowest():
    losses = pd.DataFrame(
        {
            "regime": "A",
            "arm": "step",
            "learning_rate": [1.0, 1.0, 2.0, 2.0, 4.0, 4.0],
            "seed": [0, 1] * 3,
            "loss": [0.5, 0.5, 0.5, 0.5, 0.0, float("inf")],
        }
    )
    assert own_rates(losses) == {("A", "step"): 1.0}


def test_an_unknown_experiment_is_named():
    with pytest.raises(
        UserError, match="there is no experiment 'x9': the experiments are finer, x1"
    ):
        read_design("x9")


def test_a_part_keeps_the_baseline_and_names_what_is_unknown():
    part = part_of(read_design("x5"), regimes=["A", "C"], arms=["token"])
    assert part.arms_of == {"A": ["LoRA", "token"], "C": ["LoRA", "token"]}
    assert part.slope == {}
    with pytest.raises(UserError, match="x1 has no arm 'steps': choose among LoRA, masks-32"):
        part_of(read_design("x1"), regimes=None, arms=["steps"])


def test_cells_at_their_own_rate_leave_out_the_baseline_at_other_rates():
    design = read_design("x7")
    own = some_rates(design)
    assert {(c.arm, c.learning_rate) for c in design.own_cells(own)} == {
        ("LoRA", 1e-3),
        ("step", 4e-3),
        ("token", 4e-3),
    }
    others = {c.learning_rate for c in design.final_cells(own) if c.arm == "LoRA"}
    assert others == {6e-5, 1.2e-4, 2.5e-4, 1e-3}
