"""Which settings make two runs alike: the one place that knows what a setting is for.

A configuration is a run's settings as plain values, by the names of `TrainConfig`'s fields.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from subspace_lab.adapters.methods import default_alpha
from subspace_lab.models import FORMER_NAMES

Config = Mapping[str, Any]

METHOD = ("method", "rank_mask")
MASK = (
    "keep_prob", "granularity", "rescale", "sampling", "block_size", "prefix_geometric",
    "nested_ranks", "dwell", "keep_prob_schedule", "schedule_steps", "keep_prob_pattern",
    "shared_mask", "masks_per_step", "objective", "penalty_strength",
)  # fmt: skip
"""Settings of a rank mask, without effect in a run that has none."""
SEEDS = ("seed", "init_seed", "data_seed", "mask_seed", "noise_seed")
RECORDING = (
    "cores", "snapshots", "log_every", "report_to", "eval_every", "checkpoint_every", "test_size",
    "early_stopping",
)  # fmt: skip
"""What is recorded when, which leaves training as it is."""
PROBLEM = (
    "base", "task", "data_dir", "difficulty", "label_noise", "train_split", "train_size",
    "steps", "epochs",
)  # fmt: skip
"""What is learned, from what and for how long: compared runs share it."""


def is_masked(config: Config) -> bool:
    """Tell whether a run trains under a rank mask; so it may, where it does not name its method."""
    return config.get("method", "droplora") == "droplora" or bool(config.get("rank_mask"))


def in_effect(config: Config) -> dict[str, Any]:
    """Leave a mask's settings out where there is no mask, and give the base its present name."""
    unused = () if is_masked(config) else MASK
    settings = {name: value for name, value in config.items() if name not in unused}
    if settings.get("base") in FORMER_NAMES:
        settings["base"] = FORMER_NAMES[settings["base"]]
    return settings


def without_seed(config: Config, *, but: Collection[str] = ()) -> dict[str, Any]:
    """Give what repetitions share: all settings in effect but seed, recording and those in `but`.

    Left out are also settings without a value, an alpha that is the method's default, and epochs
    beside steps.
    """
    unused = {*SEEDS, *RECORDING, *but}
    if {"method", "rank"} <= config.keys() and config.get("alpha") == default_alpha(
        config["method"], config["rank"]
    ):
        unused.add("alpha")
    if config.get("steps"):
        unused.add("epochs")
    settings = in_effect(config).items()
    return {name: value for name, value in settings if name not in unused and value is not None}


def seeds_in_effect(config: Config) -> dict[str, int]:
    """Give `seed`, and the seed of each source of randomness that the run has.

    Masks are a source of masked runs, noise of runs under label noise.

    >>> seeds_in_effect({"seed": 3, "data_seed": 5, "method": "lora"})
    {'seed': 3, 'init': 3, 'data': 5}
    """
    sources = ["init", "data"] + ["noise"] * bool(config.get("label_noise"))
    own = {
        source: config.get(f"{source}_seed") for source in sources + ["mask"] * is_masked(config)
    }
    common = int(config["seed"])
    return {"seed": common} | {
        source: common if seed is None else int(seed) for source, seed in own.items()
    }


def identity(settings: Config) -> str:
    """Write settings so that equal ones are the same text."""
    return json.dumps(settings, sort_keys=True, default=str)


def differ_in_mask_only(first: Config, second: Config) -> bool:
    """Tell whether two runs share everything, seeds included, but the method and its masks."""
    unlike = {*METHOD, *MASK, "mask_seed"}
    rest = [
        {name: value for name, value in in_effect(config).items() if name not in unlike}
        for config in (first, second)
    ]
    return rest[0] == rest[1]


def different_settings(first: Config, second: Config) -> list[str]:
    """Name the settings in effect in which two runs differ, sorted."""
    one, other = in_effect(first), in_effect(second)
    return sorted(name for name in one | other if one.get(name) != other.get(name))


def label_configurations(configs: Mapping[str, Config]) -> dict[str, str]:
    """Label each run by its configuration: runs that differ in their seed only share a label.

    A label names the settings in which the configurations differ, `keep_prob 0.5, rank 8`; those of
    a mask where masked runs differ in them. A run without a configuration (an adapter of another
    tool) is labelled by its own name.

    Args:
        configs: run name to configuration.

    >>> label_configurations({"a": {"rank": 8, "seed": 0}, "b": {"rank": 8, "seed": 1},
    ...                       "c": {"rank": 4, "seed": 0}})
    {'a': 'rank 8', 'b': 'rank 8', 'c': 'rank 4'}
    """
    settings = {
        run: {k: v for k, v in in_effect(config).items() if k not in (*SEEDS, *RECORDING)}
        for run, config in configs.items()
    }
    known = [of_run for of_run in settings.values() if of_run]

    def differs(name: str) -> bool:
        having = [of_run for of_run in known if name in of_run or name not in MASK]
        return len({json.dumps(of_run.get(name)) for of_run in having}) > 1

    names = dict.fromkeys(name for of_run in known for name in of_run)
    differing = [name for name in names if differs(name)]

    def label(run: str) -> str:
        if not settings[run]:
            return run
        shown = (name for name in differing if name in settings[run])
        texts = [f"{name} {setting_text(settings[run][name])}" for name in shown]
        return ", ".join(texts) or "all runs"

    return {run: label(run) for run in configs}


def unusual_settings(configs: Sequence[Config], *, but: Collection[str] = ()) -> list[str]:
    """Say of each configuration in which settings it is not like most.

    Method, rank and mask are left to a configuration's name, and so are the settings in `but`. Of a
    setting of which no value is the most frequent, the first one is taken as usual.
    """
    named = ("rank", *METHOD, *MASK, *but)
    settings = [without_seed(config, but=named) for config in configs]
    unusual: list[list[str]] = [[] for _ in configs]
    for name in dict.fromkeys(name for one in settings for name in one):
        texts = [json.dumps(one.get(name)) for one in settings]
        usual = collections.Counter(texts).most_common(1)[0][0]
        for place, text in enumerate(texts):
            if text != usual:
                value = settings[place].get(name)
                shown = "default" if value is None else setting_text(value)
                unusual[place].append(f"{name} {shown}")
    return [", ".join(parts) for parts in unusual]


def setting_text(value: Any) -> str:
    """Write the value of a setting; a list as its elements joined by "+"."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
