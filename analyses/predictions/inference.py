"""T9 and T12: the inference scale and the mask ensemble, from the table of `ensemble_vs_single`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.rows import Prediction, Row

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.recording.run import Run

FLOAT32 = 1e-5  # relative, of losses summed over tokens

JENSEN = Prediction(
    "single = geometric + Jensen gap", "T12", "masks do not cost what their spread says"
)
CONVEX = Prediction("arithmetic ensemble <= single", "T12", "an ensemble loses against its members")
SCALE = Prediction("best inference scale", "T9", "the update is not shrunk as a linear layer's is")


def inference(run: Run) -> Iterator[Row]:
    """Hold the last step of the run's table against both; nothing where there is no table."""
    from subspace_lab.recording import files

    path = run.output_folder / "ensemble_vs_single.parquet"
    if not path.is_file():
        return
    table = files.read_table(path)
    table = table[table["step"] == table["step"].max()]
    yield from _ensemble(table)
    yield from _scale(table)


def _ensemble(table: pd.DataFrame) -> Iterator[Row]:
    losses = table.groupby("predictor")["loss"].mean()
    rows = table.set_index("predictor")
    if not {"single", "geometric", "arithmetic"} <= set(losses.index):
        return
    masks = int((table["predictor"] == "single").sum())
    if masks < 2:
        return
    single = float(losses["single"])
    yield JENSEN.equal(
        float(losses["geometric"] + rows.loc["geometric", "jensen_gap"]),
        single,
        tolerance=FLOAT32 * single,
        basis="nats per token; rounding of float32 logits",
        samples=masks,
    )
    yield CONVEX.never([float(losses["arithmetic"]) > single * (1 + FLOAT32)])


def _scale(table: pd.DataFrame) -> Iterator[Row]:
    from subspace_lab.theory.inference_scale import fit_inference_scale

    curve = table[table["predictor"].isin(["base", "scaled", "full"])].sort_values("scale")
    predicted = float(table["predicted_scale"].iloc[0])
    if predicted != predicted or len(curve) < 3:
        return
    best = int(curve["loss"].to_numpy().argmin())
    near = curve.iloc[max(0, min(best - 1, len(curve) - 3)) :][:3]
    try:
        fit = fit_inference_scale(near["scale"].to_numpy(), near["loss"].to_numpy())
    except ValueError:  # no minimum among these scales
        return
    yield SCALE.indicative(
        predicted,
        fit.scale,
        scale=0.25 * predicted,
        why="exact for one linear layer with a squared loss at a stationary point",
        samples=int(table["examples"].iloc[0]),
    )
