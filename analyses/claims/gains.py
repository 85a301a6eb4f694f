"""What runs show of the claims that masks beat LoRA, by differences paired over seeds.

Differences that are tested together are corrected for their number (Holm), so that the probability
that any of them is called a difference by chance is at most 5 %. Which method is better is decided
by differences with each at its own learning rate; those at equal rate are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from analyses.claims.differences import (
    LEVEL,
    Difference,
    Measurement,
    seeds_needed,
    with_enough_seeds,
)
from analyses.claims.evidence import Evidence, Finding, Verdict, needs
from analyses.kit import examples_note
from analyses.mask_theory.inference import mean_losses, read_tables
from subspace_lab.configurations import MASK, identity, without_seed
from subspace_lab.runs.run import Run
from subspace_lab.stats.multiple import holm
from subspace_lab.theory.mask_law import DEFAULT_LAW

MIN_VALUES = 3  # of a setting over which a slope is fitted
BEST_KEPT = 0.7  # the keep_prob of the largest gain in the paper (Figure 2: 0.3 pruned)


class Effect(Protocol):
    """An estimated difference with the p-value of a test that it is zero."""

    @property
    def estimate(self) -> float:
        """The estimate."""

    @property
    def p_value(self) -> float:
        """Two-sided, not corrected for other tests."""


def signs(effects: Sequence[Effect]) -> list[int]:
    """Sign of each effect that differs from zero after Holm's correction over all; else 0."""
    adjusted = holm([effect.p_value for effect in effects])
    return [
        0 if not p < LEVEL else 1 if effect.estimate > 0 else -1
        for effect, p in zip(effects, adjusted, strict=True)
    ]


def decide(effects: Sequence[Effect]) -> Verdict:
    """Say whether effects are positive: all, some and none negative, none and all negative."""
    directions = set(signs(effects))
    if directions == {1}:
        return "supported"
    if directions == {-1}:
        return "contradicted"
    return "supported in part" if directions == {1, 0} else "undecided"


def decided(effects: Sequence[Difference], needed: str) -> Finding:
    """Decide by the effects with enough seeds; `needed` is what a test needs besides."""
    if not (enough := with_enough_seeds(effects)):
        return needs(f"{needed}, {seeds_needed(len(effects))} seeds each")
    return Finding(decide(enough), "; ".join(map(str, enough)) + ".")


def like_an_ensemble(evidence: Evidence) -> Finding:
    """Ask whether training with masks made the full model gain more over single masks than LoRA's.

    That the full model has a smaller loss than its masked parts is true of plain LoRA, too, and so
    says nothing about what training with masks did: the gain is compared with that of LoRA under
    the same test masks.
    """
    masked = {run: known for run in evidence.masked() if (known := _losses(run)) is not None}
    if not masked:
        return needs("analyses.ensemble_vs_single of a masked run")
    plain = {run: known for run in evidence.lora if (known := _losses(run)) is not None}
    shown = [
        f"{run.name} single masks {losses['single'] - losses['full']:+.4f}, their geometric "
        f"ensemble {losses['geometric'] - losses['full']:+.4f} (full {losses['full']:.3f}, "
        f"n = {conditions})"
        for run, (losses, conditions) in (masked | plain).items()
    ]
    text = f"Loss above the full model's, in nats per token: {'; '.join(shown)}."
    if all(losses["single"] <= losses["full"] for losses, _ in masked.values()):
        return Finding("contradicted", text)
    effects = evidence.against_lora(_gain_over_single, quantity="nats/token of that gain")
    if not (enough := with_enough_seeds(effects)):
        return Finding(
            "undecided",
            f"{text} Plain LoRA gains over single masks, too: whether masks in training add to "
            "that needs LoRA runs under the same test masks (keep_prob 0.5, rescaled), "
            f"{seeds_needed(len(effects))} seeds each.",
        )
    compared = "; ".join(map(str, effects))
    return Finding(decide(enough), f"{text} Gain over single masks, {compared}.")


def better_than_lora(
    evidence: Evidence, verdict: Callable[[Sequence[Difference]], Verdict] = decide
) -> Finding:
    """Compare exact match with LoRA's over seeds.

    `verdict` judges by the gains with each method at its own learning rate; at equal rates alone
    nothing is decided.
    """
    equal, own = evidence.gains, evidence.own_rate_gains
    counted = with_enough_seeds(own)
    wanted = seeds_needed(max(len(own), len(equal)))
    if not equal and not own:
        return needs(f"masked and LoRA runs that differ in the mask only, {wanted} seeds each")
    at_own = "With each at its own, chosen on validation examples"
    shown = {"At equal learning rate": equal, at_own: own}
    text = " ".join(f"{how}: {'; '.join(map(str, of))}." for how, of in shown.items() if of)
    if not counted and not with_enough_seeds(equal):
        return Finding("not tested", f"This needs {wanted} seeds each. Seen: {text}")
    if not counted:
        return Finding(
            "undecided",
            f"{text} Which is better, each at its own, is open: that needs both at several "
            f"learning rates, {seeds_needed(1)} seeds each, evaluated on validation and on test "
            "examples.",
        )
    left_out = len(own) - len(counted)
    few = f" {left_out} of them with fewer seeds than {wanted}, not counted." if left_out else ""
    plural = "s" * (len(counted) != 1)
    return Finding(
        verdict(counted),
        f"{text}{few} The verdict is that of each at its own, corrected for {len(counted)} "
        f"comparison{plural} (Holm).",
    )


def all_tasks(evidence: Evidence) -> Finding:
    """Compare exact match with LoRA's on each task: one task behind contradicts the claim."""
    gains = [*evidence.gains, *evidence.own_rate_gains]
    tasks = sorted({str(gain.config.get("task", "?")) for gain in gains})
    if len(tasks) < 2:
        named = ", ".join(sorted({str(run.config.get("task", "?")) for run in evidence.runs}))
        return needs(
            "masked and LoRA runs on several tasks (the paper's, on its models, to test its own "
            f"tables); these runs are on {named}"
        )

    def verdict(gains: Sequence[Difference]) -> Verdict:
        directions = signs(gains)
        if -1 in directions:
            return "contradicted"
        signed = zip(gains, directions, strict=True)
        ahead = {str(gain.config["task"]) for gain, sign in signed if sign}
        return "supported" if ahead == set(tasks) and all(directions) else "undecided"

    return better_than_lora(evidence, verdict)


def at_loras_settings(evidence: Evidence) -> Finding:
    """Compare exact match with LoRA's over seeds, with both at LoRA's own learning rate."""
    found = evidence.gains_at_loras_rate
    if not (counted := with_enough_seeds(found)):
        return needs(
            "LoRA at several learning rates and masked runs at its own, "
            f"{seeds_needed(len(found))} seeds each, evaluated on validation and on test examples"
        )
    return Finding(decide(counted), "; ".join(map(str, found)) + ".")


def by_subspaces(evidence: Evidence) -> Finding:
    """Ask whether token masks gain, too, of which no training step has a subspace of its own."""
    found = [gain for gain in evidence.own_rate_gains if gain.config.get("granularity") == "token"]
    if not (counted := with_enough_seeds(found)):
        return needs(
            "LoRA and token masks, whose steps have no subspace of their own, at several learning "
            f"rates, {seeds_needed(len(found))} seeds each, evaluated on validation and on test "
            "examples"
        )
    return Finding(
        "contradicted" if 1 in signs(counted) else "undecided",
        f"Masks without a subspace a step, each at its own rate: {'; '.join(map(str, found))}.",
    )


def less_gain_at_small_rank(evidence: Evidence) -> Finding:
    """Test how the gain of one kind of mask changes with the rank, seed by seed."""
    needed = f"masked and LoRA runs at {MIN_VALUES} or more ranks, of one kind of mask"
    return decided(gain_slopes(evidence.gains, RANK), needed)


def milder_is_better(evidence: Evidence) -> Finding:
    """Test how the gain changes with keep_prob up to the value that the paper found best."""
    gains = [gain for gain in evidence.gains if gain.config.get("keep_prob", 1) <= BEST_KEPT]
    needed = f"LoRA runs and masked runs at {MIN_VALUES} or more keep_probs up to {BEST_KEPT}"
    return decided(gain_slopes(gains, KEPT), f"{needed}, of one kind of mask")


class Setting(NamedTuple):
    """A setting over which gains have a slope.

    Attributes:
        name: in the configuration.
        beside: settings that change with it.
        scale: of its values.
        step: what the slope is for each of.
    """

    name: str
    beside: tuple[str, ...]
    scale: Callable[[Any], Any]
    step: str


RANK = Setting("rank", ("alpha",), np.log2, "doubling of the rank")
KEPT = Setting("keep_prob", (), np.asarray, "unit of keep_prob")


def gain_slopes(gains: Sequence[Difference], setting: Setting) -> list[Difference]:
    """Slope of the gain over a setting by seed, for each kind of mask with enough values of it."""
    kinds: dict[str, list[Difference]] = {}
    for gain in gains:
        kind = identity(without_seed(gain.config, but=(setting.name, *setting.beside)))
        kinds.setdefault(kind, []).append(gain)
    slopes = []
    for alike in kinds.values():
        alike.sort(key=lambda gain: gain.config[setting.name])
        values = [gain.config[setting.name] for gain in alike]
        common = set.intersection(*(set(gain.by_seed) for gain in alike))
        if len(set(values)) < MIN_VALUES or not common:
            continue
        x = setting.scale(values)
        by_seed = {
            seed: round(float(np.polyfit(x, [gain.by_seed[seed] for gain in alike], 1)[0]), 12)
            for seed in alike[0].by_seed
            if seed in common
        }
        means = ", ".join(
            f"{gain.estimate:+.3f} at {setting.name} {value}"
            for gain, value in zip(alike, values, strict=True)
        )
        quantity = f"exact match for each {setting.step} ({means})"
        config = alike[0].config
        mask = ", ".join(
            f"{name} {config[name]}" for name in MASK if name in config and name != setting.name
        )
        slopes.append(Difference(mask or "masked", quantity, by_seed, alike[0].conditions, config))
    return slopes


def _gain_over_single(run: Run) -> Measurement | None:
    """Loss of single masks minus that of the full model, under masks of LoRA's test law."""
    law = run.mask_law
    known = _losses(run)
    same = law is None or (law.plain and law.factor == DEFAULT_LAW.factor == 1 / law.keep_prob)
    if known is None or not same:
        return None
    losses, conditions = known
    return Measurement(losses["single"] - losses["full"], conditions)


def _losses(run: Run) -> tuple[dict[str, float], str] | None:
    """Mean losses by predictor, and of what, from the run's table of `ensemble_vs_single`."""
    table = read_tables(run).ensembles
    if table is None:
        return None
    losses, masks = mean_losses(table)
    how = [examples_note(table), f"{masks} mask{'s' * (masks != 1)}"]
    how += sorted(set(table["dtype"].astype(str))) if "dtype" in table else []
    return losses, ", ".join(how)
