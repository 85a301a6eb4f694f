from __future__ import annotations

from dataclasses import fields

from subspace_lab.configurations import (
    MASK,
    METHOD,
    PROBLEM,
    RECORDING,
    differ_in_mask_only,
    different_settings,
    identity,
    label_configurations,
    without_seed,
)
from subspace_lab.training.config import TrainConfig

LORA = TrainConfig(method="lora").to_dict()


def test_runs_that_differ_in_seed_and_recording_only_share_a_label():
    found = label_configurations(
        {
            "a": {"keep_prob": 0.5, "targets": ["q", "v"], "seed": 0, "cores": "full"},
            "b": {"keep_prob": 0.5, "targets": ["q", "v"], "seed": 1, "cores": "light"},
            "c": {"keep_prob": 0.7, "targets": ["q"], "seed": 0, "cores": "full"},
        }
    )
    assert found["a"] == found["b"] == "keep_prob 0.5, targets q+v"
    assert found["c"] == "keep_prob 0.7, targets q"


def test_a_setting_that_only_some_configurations_have_tells_them_apart():
    found = label_configurations({"a": {"rank": 8}, "b": {"rank": 8, "lora_plus_ratio": 16}})
    assert found["a"] != found["b"]


def test_a_run_without_configuration_keeps_its_name():
    found = label_configurations({"hub": {}, "a": {"rank": 8}, "b": {"rank": 8}})
    assert found == {"hub": "hub", "a": "all runs", "b": "all runs"}


def test_labels_are_distinct_for_distinct_configurations():
    configs = {f"{r}-{q}": {"rank": r, "keep_prob": q} for r in (4, 8) for q in (0.5, 0.7)}
    assert len(set(label_configurations(configs).values())) == 4


def test_every_setting_with_a_role_is_a_field_of_the_training_configuration():
    named = [*METHOD, *MASK, *RECORDING, *PROBLEM]
    assert len(set(named)) == len(named) and set(named) <= {
        field.name for field in fields(TrainConfig)
    }


def test_what_has_no_effect_does_not_tell_runs_apart():
    others = (
        {"keep_prob": 0.9, "granularity": "token"},  # of a mask that is not there
        {"seed": 3, "cores": "light"},
        {"alpha": None},
    )
    for other in others:
        assert identity(without_seed(LORA | other)) == identity(without_seed(LORA)), other
    longer = LORA | {"steps": 7, "epochs": 5.0}
    assert without_seed(longer) == without_seed(LORA | {"steps": 7})
    for other in ({"rank": 4}, {"alpha": 5.0}, {"method": "droplora"}):
        assert identity(without_seed(LORA | other)) != identity(without_seed(LORA)), other


def test_a_former_name_of_a_base_is_the_same_base():
    former, present = (TrainConfig(base=base).to_dict() for base in ("bundled", "smollm2"))
    assert different_settings(former, present) == []
    assert without_seed(former) == without_seed(present)
    assert label_configurations({"a": former, "b": present}) == {"a": "all runs", "b": "all runs"}


def test_a_masked_run_and_its_lora_differ_in_the_mask_only():
    masked = TrainConfig(method="droplora", keep_prob=0.7).to_dict()
    assert differ_in_mask_only(LORA, masked)
    assert not differ_in_mask_only(LORA | {"seed": 1}, masked)
    assert not differ_in_mask_only(LORA | {"learning_rate": 1.0}, masked)


def test_a_label_leaves_a_missing_masks_settings_out():
    configs = {
        f"{method} {keep_prob}": TrainConfig(method=method, keep_prob=keep_prob).to_dict()
        for method in ("lora", "droplora")
        for keep_prob in (0.5, 0.7)
    }
    labels = label_configurations(configs)
    assert labels["lora 0.5"] == labels["lora 0.7"] == "method lora"
    assert labels["droplora 0.7"] == "method droplora, keep_prob 0.7"
