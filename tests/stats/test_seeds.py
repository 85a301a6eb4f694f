from __future__ import annotations

from subspace_lab.stats.seeds import label_configurations


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
    found = label_configurations({"a": {"rank": 8}, "b": {"rank": 8, "dwell": 10}})
    assert found["a"] != found["b"]


def test_a_run_without_configuration_keeps_its_name():
    found = label_configurations({"hub": {}, "a": {"rank": 8}, "b": {"rank": 8}})
    assert found == {"hub": "hub", "a": "all runs", "b": "all runs"}


def test_labels_are_distinct_for_distinct_configurations():
    configs = {f"{r}-{q}": {"rank": r, "keep_prob": q} for r in (4, 8) for q in (0.5, 0.7)}
    assert len(set(label_configurations(configs).values())) == 4
