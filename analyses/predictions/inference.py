"""T9, T11 and T12: what masks do to the trained model, from the tables of two other analyses.

The inference scale and the mask ensemble come from `ensemble_vs_single`, the cost of random gates
from `gate_expansion`. Nothing is said where those were not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.laws import LEVEL, Law
from analyses.predictions.rows import Prediction, Row

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.runs.run import Run

FLOAT32 = 1e-5  # relative, of losses summed over tokens

JENSEN = Prediction(
    "single = geometric + Jensen gap", "T12", "identity", "masks do not cost what their spread says"
)
CONVEX = Prediction(
    "arithmetic ensemble <= single", "T12", "identity", "an ensemble loses against its members"
)
SCALE = Prediction(
    "best inference scale", "T9", "trained model", "the update is not shrunk as a linear layer's is"
)
JENSEN_ALONE = Prediction(
    "single masks' gap is the Jensen gap",
    "T12",
    "trained model",
    "the full model is not the geometric ensemble",
)
GATES = Prediction(
    "gates' gap is its second order",
    "T11",
    "trained model",
    "the regulariser is not what masks cost this network",
)


def inference(run: Run) -> Iterator[Row]:
    """Hold the last step of each table against theory."""
    from subspace_lab import files

    topics = {"ensemble_vs_single": (ensemble, _scale), "gate_expansion": (gate_gap_rows,)}
    for analysis, predict in topics.items():
        path = run.output_folder / f"{analysis}.parquet"
        if path.is_file():
            table = files.read_table(path)
            last = table[table["step"] == table["step"].max()]
            for topic in predict:
                yield from topic(last)


def gate_gap_rows(table: pd.DataFrame) -> Iterator[Row]:
    """Hold the measured gap against the second order of its expansion, the regulariser.

    It may be held against the run only where the third and fourth order are small beside it; then
    their size, and what chance does, are what it may miss by.
    """
    from scipy import stats

    last = table.iloc[-1]
    predicted = float(last["second"])
    orders = {name: abs(float(last[name])) for name in ("third", "fourth")}
    large = [name for name, size in orders.items() if size > last["tolerance"] * predicted]
    samples = int(last["masks"])
    if not large:
        # So few masks leave the standard error itself uncertain.
        chance = Law(stats.t(samples - 1, loc=predicted, scale=float(last["excess_error"])))
        low, high = chance.limits()
        higher = sum(orders.values())
        yield GATES.within(
            predicted,
            float(last["measured"]),
            limits=(low - higher, high + higher),
            probability=chance.probability(float(last["measured"])),
            power=chance.caught_above + higher,
            unit="of measured",
            basis=f"Student's quantile at {LEVEL:g} over masks, and the third and fourth order",
            samples=samples,
        )
        return
    yield GATES.indicative(
        predicted,
        float(last["measured"]),
        scale=abs(predicted) or 1.0,
        why=f"the expansion is not valid here: its {large[0]} order is not small beside the second",
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
