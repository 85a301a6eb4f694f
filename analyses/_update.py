"""What the product scaling B A of a run is: the whole update of its base, or only a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subspace_lab.runs.run import Run

SPLIT = (
    "not converted to the original base, which was changed at the start (PiSSA, MiLoRA, OLoRA "
    "...): its update is the product minus the initial product"
)
RESTARTED = (
    "the product is that of the adapter since its last restart; the run's update is the sum over "
    "restarts, which its snapshots hold (--run RUN/snapshots)"
)
DORA = (
    "the product is DoRA's update of the direction only; the whole update needs the base weight "
    "and the magnitude"
)


def remark_on_product(run: Run) -> str:
    """Say why scaling B A is not the whole update; empty where it is.

    Known from the run's method, and from what PEFT saved with its adapters; an initialization made
    by hand leaves no trace in the files of other tools (see `peft_folder`).
    """
    from subspace_lab.adapters.methods import SPLIT_THE_BASE

    method = run.config.get("method")
    if run.config.get("restart_every"):
        return RESTARTED
    notes = [note for adapter in run.snapshots.values() for note in adapter.modules["note"]]
    if method == "dora" or any("DoRA" in note for note in notes):
        return DORA
    if method in SPLIT_THE_BASE or any("not converted" in note for note in notes):
        return SPLIT
    return ""
