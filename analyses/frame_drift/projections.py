"""How far GaLore's projections turn: principal angles between the frames of its refreshes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses import kit
from subspace_lab import linalg
from subspace_lab.errors import UserError
from subspace_lab.module_names import layer_and_projection
from subspace_lab.runs.projections import projection_steps, read_projections
from subspace_lab.runs.run import Run

Frames = Mapping[tuple[str, str], Tensor]

LABELS = ("run", "module", "projection", "side", "since")
KEYS = ["run", "step", "module", "layer", "projection", "side", "since"]


def projection_drift(run: Run, *, steps: kit.Steps, modules: kit.Modules) -> pd.DataFrame:
    """Compare each refresh of a GaLore run with the one before it and with the first.

    Returns:
        Columns run, step (of the refresh), module, layer, projection, side (the one that GaLore
        projects), since (previous, start), angles (list, radians, ascending), max_angle (radians).

    Raises:
        UserError: if the run has a single refresh, or none of those chosen has one before it.
    """
    refreshes = projection_steps(run.path)
    if len(refreshes) < 2:
        raise UserError(
            f"{run.path} drew its projections once, so there are none to compare them with: train "
            "more steps, or with a smaller `galore_refresh`"
        )
    start = before = read_projections(run.path, refreshes[0])
    tables = []
    for step in refreshes[1:]:
        now = read_projections(run.path, step)
        if steps is None or step in steps:
            for since, earlier in (("previous", before), ("start", start)):
                angles = _angles(now, earlier, modules)
                tables += [rows.assign(run=run.name, step=step, since=since) for rows in angles]
        before = now
    if not tables:
        raise UserError(
            f"{run.path} has no projections to compare at the steps and modules chosen: its "
            f"refreshes after the first are at the steps {', '.join(map(str, refreshes[1:]))}"
        )
    drift = pd.concat(tables, ignore_index=True)
    drift[["layer", "projection"]] = [layer_and_projection(name) for name in drift["module"]]
    drift = drift.astype(dict.fromkeys(LABELS, "category"))
    return drift[[*KEYS, "angles", "max_angle"]]


def _angles(now: Frames, earlier: Frames, modules: kit.Modules) -> Iterator[pd.DataFrame]:
    """Give the angles of every frame, a table for those of one shape."""
    keys = [key for key in now if modules is None or key[0] in modules]
    for shape in dict.fromkeys(now[key].shape for key in keys):
        alike = [key for key in keys if now[key].shape == shape]
        stacks = (torch.stack([frames[key] for key in alike]) for frames in (now, earlier))
        angles = linalg.principal_angles(*stacks)  # (modules, r)
        columns = {
            "module": [module for module, _ in alike],
            "side": [side for _, side in alike],
            "angles": kit.ragged(angles.numpy()),
            "max_angle": np.nanmax(angles.numpy(), axis=-1),
        }
        yield pd.DataFrame(columns)
