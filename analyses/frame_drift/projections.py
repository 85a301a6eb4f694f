"""How far GaLore's projections turn: principal angles between the frames of its refreshes."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

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


def projection_drift(
    run: Run,
    *,
    steps: Collection[int] | None = None,
    modules: Collection[str] | None = None,
) -> pd.DataFrame:
    """Compare each refresh of a GaLore run with the one before it and with the first.

    Args:
        run: a run with recorded projections.
        steps: only refreshes at these steps; None: all but the first.
        modules: only these modules; None: all.

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
    frames = {step: read_projections(run.path, step) for step in refreshes[:1]}
    tables = []
    for previous, step in itertools.pairwise(refreshes):
        frames = {refreshes[0]: frames[refreshes[0]], previous: frames[previous]}
        frames[step] = read_projections(run.path, step)
        if steps is None or step in steps:
            for since, earlier in (("previous", previous), ("start", refreshes[0])):
                rows = _angles(frames[step], frames[earlier], modules)
                tables.append(rows.assign(run=run.name, step=step, since=since))
    drift = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    if drift.empty:
        raise UserError(
            f"{run.path} has no projections to compare at the steps and modules chosen: its "
            f"refreshes after the first are at the steps {', '.join(map(str, refreshes[1:]))}"
        )
    drift[["layer", "projection"]] = [layer_and_projection(name) for name in drift["module"]]
    drift = drift.astype(dict.fromkeys(LABELS, "category"))
    return drift[[*KEYS, "angles", "max_angle"]]


def _angles(now: Frames, earlier: Frames, modules: Collection[str] | None) -> pd.DataFrame:
    """Give the angles of every frame, those of one shape in one batch."""
    keys = [key for key in now if modules is None or key[0] in modules]
    tables = []
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
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
