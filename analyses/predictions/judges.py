"""How runs are heard on the paper's claims: one function of the evidence for each claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyses.predictions.evidence import LEAST_SEEDS, Evidence, Finding, Gain, Verdict, needs

if TYPE_CHECKING:
    from subspace_lab.recording.run import Run

STATIC = 1.0  # degrees; a frame that turned less may well be called static


def same_method(evidence: Evidence) -> Finding:
    """Hear a run of Eq. 2 (a mask per step) and one of Algorithm 1 (per token)."""
    step, token = (evidence.masked(granularity=each) for each in ("step", "token"))
    per_step = evidence.values("gates constant over tokens", step)
    per_token = evidence.values("overlap of two tokens, mean", token)
    if per_step.empty or per_token.empty:
        return needs("a run with a mask per step and one with a mask per token, with their gates")
    return Finding(
        "contradicted",
        "Gates that differ between the tokens of a row, step masks: "
        f"{evidence.quote('gates constant over tokens', step)}. Directions that two tokens share, "
        f"token masks: {evidence.quote('overlap of two tokens, mean', token)}. Kept gates: "
        f"{evidence.quote('rescale of kept gates', step + token)}.",
    )


def one_subspace_a_step(evidence: Evidence) -> Finding:
    """Hear whether a step uses one subspace, and how far the next one is."""
    step = [run for run in evidence.masked(granularity="step") if run.mask_steps]
    token = evidence.masked(granularity="token")
    left = evidence.values("directions that step 1 left", token)
    if not step and left.empty:
        return needs("a masked run")
    shown = []
    if step:
        jaccard = evidence.quote("Jaccard of next masks", step)
        shown.append(f"Step masks: Jaccard index of successive masks {jaccard}.")
        rows = evidence.quote("gates constant over rows", step)
        shown.append(f"Gates that differ between rows of a batch: {rows}." if rows else "")
    if not left.empty:
        quoted = evidence.quote("directions that step 1 left", token)
        shown.append(f"Token masks: directions that step 1 did not update, {quoted}.")
    # One mask serves the step, but it shares directions with the next, and momentum moves others.
    return Finding("supported in part" if step else "contradicted", " ".join(filter(None, shown)))


def never_twice(evidence: Evidence) -> Finding:
    """Count the steps whose mask a module had before."""
    import numpy as np

    step = [run for run in evidence.masked(granularity="step") if run.mask_steps]
    if not step:
        return needs("a run with a mask per step")
    shown: list[str] = []
    repeated: list[bool] = []
    for run in step:
        total = again = 0
        for rank in run.modules["r"].unique():
            for masks in run.masks_of_rank(int(rank))[1].swapaxes(0, 1):
                again += len(masks) - len(np.unique(masks, axis=0))
                total += len(masks)
        repeated.append(again > 0)
        ranks = "/".join(str(rank) for rank in run.modules["r"].unique())
        shown.append(f"{run.name} {again / total:.1%} (r = {ranks}, n = {total:,})")
    verdict: Verdict = "contradicted" if all(repeated) else "supported in part"
    return Finding(
        verdict if any(repeated) else "supported",
        f"Masks that the same module had in an earlier step: {', '.join(shown)}.",
    )


def half_the_rank(evidence: Evidence) -> Finding:
    """Hear the rank, entropy rank and stable rank of masked updates."""
    runs = [
        run
        for run in evidence.masked(granularity="step")
        if run.mask_law and run.mask_law["keep_prob"] == 0.5
    ]
    rank = evidence.values("masked rank is the kept count", runs)
    if rank.empty:
        return needs("a run with step masks of keep_prob 0.5 and cores")
    entropy, stable = "masked entropy rank over full", "masked stable rank over full"
    return Finding(
        "supported in part",
        f"Mean number of kept directions: {evidence.quote('kept directions, mean', runs)}; masked "
        "updates whose rank is not that number: "
        f"{evidence.quote('masked rank is the kept count', runs)}. Masked over full, entropy "
        f"effective rank: {evidence.quote(entropy, runs)}; stable rank: "
        f"{evidence.quote(stable, runs)}.",
    )


def only_the_kept(evidence: Evidence) -> Finding:
    """Hear how far masked directions moved, under AdamW and under SGD."""
    step = evidence.masked(granularity="step")
    moved = "B's displacement while masked"
    adam, sgd = evidence.values(moved, step), evidence.values("masked directions stand still", step)
    if adam.empty and sgd.empty:
        return needs("a run with step masks and cores of every step")
    shown = []
    if not adam.empty:
        shown.append(
            f"AdamW, share of the displacement made while masked: B {evidence.quote(moved, step)}; "
            f"A {evidence.quote(moved.replace('B', 'A'), step)}."
        )
    if not sgd.empty:
        still = evidence.quote("masked directions stand still", step)
        shown.append(f"Plain SGD, masked directions that moved: {still}.")
    contradicted = bool((adam["measured"] > 0).any())
    if contradicted and not sgd.empty:
        return Finding("supported in part", " ".join(shown))
    return Finding("contradicted" if contradicted else "supported", " ".join(shown))


def like_an_ensemble(evidence: Evidence) -> Finding:
    """Compare the full model with single masks and with their geometric ensemble."""
    losses = {run: known for run in evidence.masked() if (known := _losses(run)) is not None}
    if not losses:
        return needs("analyses.ensemble_vs_single of a masked run")
    shown, better, rescaled = [], [], []
    for run, (found, rows) in losses.items():
        assert run.mask_law is not None
        better.append(found["full"] < found["single"])
        rescaled.append(run.mask_law["rescale"])
        shown.append(
            f"{run.name} ({'rescaled' if rescaled[-1] else 'not rescaled'}) full "
            f"{found['full']:.3f}, single masks {found['single']:.3f}, their geometric ensemble "
            f"{found['geometric']:.3f} (n = {rows})"
        )
    text = f"Loss in nats per token: {'; '.join(shown)}."
    if not any(better):
        return Finding("contradicted", text)
    # A smaller loss than single masks is what an ensemble gives, and no proof of being one.
    return Finding("supported in part", text)


def unlike_dropout(evidence: Evidence) -> Finding:
    """Hear whether token masks have the law of dropout on the hidden units of B A."""
    token = evidence.masked(granularity="token")
    if evidence.values("overlap of two tokens, mean", token).empty:
        return needs("a run with a mask per token, as in the released code, with its gates")
    return Finding(
        "contradicted",
        "Token masks act as dropout of the hidden units of B A. Kept gates: "
        f"{evidence.quote('rescale of kept gates', token)}; kept: "
        f"{evidence.quote('gates kept, count', token)}; directions that two tokens share: "
        f"{evidence.quote('overlap of two tokens, mean', token)}; all as independent coin flips.",
    )


def static_subspace(evidence: Evidence) -> Finding:
    """Hear how far the row space of A turned since the start, masked or not."""
    turns = {run: _turned(run) for run in evidence.lora + evidence.masked()}
    known = {run: turn for run, turn in turns.items() if turn is not None}
    if not any(run in known for run in evidence.lora) or not set(known) - set(evidence.lora):
        return needs("a LoRA run and a masked run with cores")
    shown = ", ".join(
        f"{run.name} {degrees:.1f}° (n = {modules} modules, update of rank {rank} of r = {most})"
        for run, (degrees, modules, rank, most) in known.items()
    )
    turning = any(known[run][0] > STATIC for run in evidence.lora if run in known)
    return Finding(
        "contradicted" if turning else "undecided",
        "Median over modules of the largest angle between the row space of A at the end and at "
        f"the start: {shown}.",
    )


def better_than_lora(evidence: Evidence) -> Finding:
    """Compare exact match with LoRA's over seeds."""
    gains = evidence.gains
    if not gains:
        return needs(f"masked and LoRA runs that differ in the mask only, {LEAST_SEEDS} seeds each")
    text = "; ".join(map(str, gains)) + "."
    seeds = [len(gain.difference.pairs) for gain in gains]
    if min(seeds) < LEAST_SEEDS:
        return Finding(
            "not tested", f"Not tested by these runs: needs {LEAST_SEEDS} seeds each. Seen: {text}"
        )
    signs = {_sign(gain) for gain in gains}
    if signs == {1}:
        return Finding("supported", text)
    if signs == {-1}:
        return Finding("contradicted", text)
    return Finding("supported in part" if signs == {1, 0} else "undecided", text)


def less_gain_at_small_rank(evidence: Evidence) -> Finding:
    """Compare the gains at the largest and the smallest rank."""
    gains = sorted(evidence.gains, key=lambda gain: gain.rank)
    enough = [gain for gain in gains if len(gain.difference.pairs) >= LEAST_SEEDS]
    if len({gain.rank for gain in enough}) < 2:
        return needs(f"masked and LoRA runs at two or more ranks, {LEAST_SEEDS} seeds each")
    low, high = (enough[place].difference.difference for place in (0, -1))
    text = "; ".join(f"r = {gain.rank}, {gain}" for gain in enough) + "."
    if low.high < high.low:
        return Finding("supported", text)
    return Finding("contradicted" if high.high < low.low else "undecided", text)


def two_masks(evidence: Evidence) -> Finding:
    """No run of this toolkit has a mask on each factor."""
    return needs("runs with a mask on A and another on B, next to runs with one; no run has two")


def all_tasks(evidence: Evidence) -> Finding:
    """The claim is about the paper's own tables."""
    tasks = sorted({str(run.config.get("task", "?")) for run in evidence.runs})
    return needs(f"the paper's tasks and models; these runs are on {', '.join(tasks)}")


def _losses(run: Run) -> tuple[dict[str, float], str] | None:
    """Mean losses by predictor, and of which rows, from the run's table of `ensemble_vs_single`."""
    from analyses._tables import rows_note
    from subspace_lab.recording import files

    path = run.output_folder / "ensemble_vs_single.parquet"
    if not path.is_file():
        return None
    table = files.read_table(path)
    table = table[table["step"] == table["step"].max()]
    return table.groupby("predictor")["loss"].mean().to_dict(), rows_note(table)


def _turned(run: Run) -> tuple[float, int, int, int] | None:
    """Median largest angle of row(A) since the start in degrees, modules, largest rank, and r."""
    import numpy as np
    import torch

    from subspace_lab import linalg

    if not run.recorded or not run.steps or run.steps[-1] == 0:
        return None
    angles: list[float] = []
    ranks: list[int] = []
    for batch in run.cores(steps=[run.steps[-1]]):
        start = batch.core.row.start
        if start is None or not batch.finite.all():
            return None
        found = linalg.principal_angles(batch.core.row.now(), batch.core.row.then(start))
        angles += torch.rad2deg(found[..., -1]).flatten().tolist()
        sigma = batch.core.singular_values()
        ranks.append(int(linalg.effective_rank(sigma, measure="numerical").max()))
    return float(np.median(angles)), len(angles), max(ranks), int(run.modules["r"].max())


def _sign(gain: Gain) -> int:
    """1 or -1 where a gain is told from zero, else 0."""
    found = gain.difference
    if found.test.p_value >= 0.05:
        return 0
    return 1 if found.difference.low > 0 else -1 if found.difference.high < 0 else 0
