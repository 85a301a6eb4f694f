"""T9, T11 and T12: what masks do to the trained model, from the tables of two other analyses.

The inference scale and the mask ensemble come from `ensemble_vs_single`, the cost of random gates
from `gate_expansion`. Nothing is said where those were not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.rows import STANDARD_ERRORS, Prediction, Row

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.recording.run import Run

FLOAT32 = 1e-5  # relative, of losses summed over tokens

JENSEN = Prediction(
    "single = geometric + Jensen gap", "T12", "masks do not cost what their spread says"
)
CONVEX = Prediction("arithmetic ensemble <= single", "T12", "an ensemble loses against its members")
SCALE = Prediction("best inference scale", "T9", "the update is not shrunk as a linear layer's is")
JENSEN_ALONE = Prediction(
    "single masks' gap is the Jensen gap", "T12", "the full model is not the geometric ensemble"
)
GATES = Prediction(
    "gates' gap is its expansion", "T11", "masks cost what no low order of the gates explains"
)


def inference(run: Run) -> Iterator[Row]:
    """Hold the last step of each table against theory."""
    from subspace_lab.recording import files

    topics = {"ensemble_vs_single": (ensemble, _scale), "gate_expansion": (gate_gap_rows,)}
    for analysis, predict in topics.items():
        path = run.output_folder / f"{analysis}.parquet"
        if path.is_file():
            table = files.read_table(path)
            last = table[table["step"] == table["step"].max()]
            for topic in predict:
                yield from topic(last)


def gate_gap_rows(table: pd.DataFrame) -> Iterator[Row]:
    """Hold the measured gap against orders 2 to 4 of its expansion.

    The expansion may be held against the run only where its own third and fourth order are small
    beside the second; then their size, and four standard errors, are what it may miss by.
    """
    last = table.iloc[-1]
    orders = {"third order": last["third"], "fourth order": last["fourth"]}
    predicted = float(last["second"] + sum(orders.values()))
    allowed = float(last["tolerance"] * last["second"])
    large = [name for name, value in orders.items() if abs(value) > allowed]
    samples = int(last["masks"])
    if not large:
        slack = sum(abs(value) for value in orders.values())
        yield GATES.drawn(
            predicted,
            float(last["measured"]),
            tolerance=STANDARD_ERRORS * float(last["excess_error"]) + slack,
            basis="4 standard errors over masks, and the third and fourth order",
            samples=samples,
        )
        return
    yield GATES.indicative(
        predicted,
        float(last["measured"]),
        scale=abs(predicted) or 1.0,
        why=f"not valid here: the {large[0]} is not small beside the second",
        samples=samples,
    )


def ensemble(table: pd.DataFrame) -> Iterator[Row]:
    """Hold single masks against the geometric and the arithmetic ensemble, and the Jensen gap."""
    losses = table.groupby("predictor")["loss"].mean()
    rows = table.set_index("predictor")
    if not {"full", "single", "geometric", "arithmetic"} <= set(losses.index):
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
    jensen = float(table.loc[table["predictor"] == "geometric", "jensen_gap"].iloc[0])
    yield JENSEN_ALONE.indicative(
        jensen,
        single - float(losses["full"]),
        scale=0.25 * jensen,
        why="exact for adapters on the logits only, with rescaled masks",
        samples=masks,
    )


def _scale(table: pd.DataFrame) -> Iterator[Row]:
    from subspace_lab.theory.inference_scale import fit_inference_scale

    curve = table[table["predictor"].isin(["base", "scaled", "full"])]
    curve = curve.dropna(subset="scale").sort_values("scale")
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
