"""What did fine-tuning forget, and does less of the intruder dimensions bring it back?

    python -m analyses.forgetting --run RUN [--run RUN2 ...] [--text FILE.jsonl]

The loss on general text, before and after fine-tuning, in nats per response token, beside the loss
on the run's own test examples. The text is the test examples of a task or of a file with a prompt
and a response each (`docs/how-to/own-data.md`); for the pocket base it is what that base was
pretrained on, of which these prompts were held out (`pocket_pretraining`).

Intruder dimensions are leading singular directions of the merged weight W that no singular
direction of the base is like (|cosine| below 0.5, among the 10 largest), and have been linked to
forgetting ("LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228). PEFT's
`reduce_intruder_dimension` scales them by `kept` in W and makes the result an adapter of the same
rank again; `kept` 1 is the adapter as it was trained. Intervals are over examples; `difference` is
paired by example with the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses import kit
from subspace_lab import tasks
from subspace_lab.errors import UserError, check_counts
from subspace_lab.evaluation.likelihood import score_responses
from subspace_lab.evaluation.trained_model import TrainedModel, evaluation_examples
from subspace_lab.models import Precision
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import ratio_interval
from subspace_lab.tasks import Example, pocket_text

if TYPE_CHECKING:
    from peft import PeftModel

KEPT = (1.0, 0.75, 0.5, 0.25, 0.0)
TRAINED, REDUCED = "default", "reduced"
"""Names of adapters in the model."""


def compute(
    run: Run,
    *,
    steps: kit.Steps = None,
    modules: kit.Modules = None,
    text: str | None = None,
    examples: int = 256,
    batch_size: int = 32,
    dtype: Precision = "fp32",
) -> pd.DataFrame:
    """Measure losses of the base, and of the adapter with its intruders kept by and by less.

    `steps` None: the last; `modules` must be None.

    Returns:
        A row is a run, step, model (base, trained) and text: `run, step`, `model`, `kept` (share of
        the intruder dimensions; nan of the base), `of` (general text, own task), `text` (a task's
        name), `loss`, `low`, `high`, `difference` (to the base), `difference_low`,
        `difference_high`, `examples`, `dtype`.

    Raises:
        UserError: if the run has no LoRA adapter to load, no text is known, or an argument is out
            of range.
    """
    check_counts(examples=examples, batch_size=batch_size)
    if modules is not None:
        raise UserError("forgetting evaluates whole models: omit `modules`")
    sets = {
        "general text": _general_text(run, text, examples),
        "own task": evaluation_examples(run, split="test", size=examples),
    }

    def of_snapshot(trained: TrainedModel) -> Iterator[dict[str, Any]]:
        if trained.model.active_peft_config.peft_type != "LORA":
            raise UserError(
                f"{run.path} is not LoRA, whose intruder dimensions alone can be scaled"
            )
        for of, chosen in sets.items():
            with trained.model.disable_adapter():
                before, tokens = _nats(trained, chosen, batch_size)
            losses = {("base", float("nan")): before}
            for kept in KEPT:
                with intruders_kept(trained.model, kept):
                    losses["trained", kept], _ = _nats(trained, chosen, batch_size)
            for (model, kept), nats in losses.items():
                loss, change = (ratio_interval(x, tokens) for x in (nats, nats - before))
                yield {
                    "model": model,
                    "kept": kept,
                    "of": of,
                    "text": chosen[0].task,
                    "loss": loss.estimate,
                    "low": loss.low,
                    "high": loss.high,
                    "difference": change.estimate,
                    "difference_low": change.low,
                    "difference_high": change.high,
                    "examples": len(chosen),
                }

    return kit.over_snapshots(run, of_snapshot, steps=steps, dtype=dtype)


def _general_text(run: Run, text: str | None, size: int) -> list[Example]:
    if text is None:
        if run.config.get("base") != "pocket":
            raise UserError(f"no general text for the base of {run.path} is known: give --text")
        text = pocket_text.NAME
    return tasks.load(text, "test", size=size, data_dir=run.config.get("data_dir"))


def _nats(
    trained: TrainedModel, examples: list[Example], batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give nats (N,) and tokens (N,) of the responses."""
    pairs = [(example.prompt, example.response) for example in examples]
    scores = score_responses(trained.model, trained.tokenizer, pairs, batch_size=batch_size)
    nats, tokens = np.array([(score.nats, score.tokens) for score in scores]).T
    return nats, tokens


@contextmanager
def intruders_kept(model: PeftModel, kept: float) -> Iterator[None]:
    """Scale the adapter's intruder dimensions; afterwards it is as it was.

    PEFT's `mitigation_lambda` is the share that is kept, though its docstring calls it the share
    that is subtracted.
    """
    if kept == 1:
        yield
        return
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    reduce_intruder_dimension(model, TRAINED, REDUCED, mitigation_lambda=kept, logging_sink=None)
    try:
        yield
    finally:
        model.set_adapter(TRAINED)
        model.delete_adapter(REDUCED)


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give each run's loss before, after, and with its intruders removed."""
    summary: dict[str, str] = {}
    for (run, step, of), rows in table.groupby(["run", "step", "of"], sort=False):
        before = rows.loc[rows["model"] == "base", "loss"].iloc[0]
        known = rows.set_index("kept")
        after, low, high = known.loc[1.0, ["difference", "difference_low", "difference_high"]]
        summary[f"{run}, step {step}, loss on {of} ({rows['text'].iloc[0]})"] = (
            f"{before:.4g} before, {before + after:.4g} after ({after:+.4g} [{low:+.4g}, "
            f"{high:+.4g}]), {known['loss'].loc[0.0]:.4g} without intruder dimensions"
        )
    return summary


def figure_table(table: pd.DataFrame) -> pd.DataFrame:
    """Make the table of what is drawn of each run's last step, a row for each point.

    Columns: `run` (or configuration), `of`, `kept`, `seeds`, `value` (the change of the loss to the
    base), `low` and `high` (95 % over examples; of several seeds the mean and 95 % over seeds),
    `examples`, `dtype`.
    """
    trained = kit.at_last_step(table[table["model"] == "trained"])
    names = {"difference": "value", "difference_low": "low", "difference_high": "high"}
    points = trained.drop(columns=["low", "high"], errors="ignore").rename(columns=names)
    points = points.assign(run=trained[kit.group_column(trained)].astype(str))
    columns = ["run", "of", "kept", "seeds", "value", "low", "high", "examples", "dtype"]
    return kit.over_seeds(points, by=["run", "of", "kept"])[columns]


def draw(points: pd.DataFrame, page: kit.Page) -> None:
    """Draw the change of the loss over the share of the intruder dimensions, a panel each text."""
    panels = {str(of): rows for of, rows in points.groupby("of", sort=False)}
    axes = page.panels(list(panels), row_height=1.4, share_x=True)
    for of, axis in axes.items():
        for run, rows in panels[of].groupby("run", sort=False):
            style = page.style(str(run))
            axis.vlines(rows["kept"], rows["low"], rows["high"], color=style["color"], lw=0.7)
            line = page.line(str(run))
            axis.plot(rows["kept"], rows["value"], label=run, linestyle=line, **style)
        axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
        axis.set_ylabel("change (nats/token)")
        page.set_title(axis, f"Loss on {of}")
    axis.set_xlabel("share kept of the intruder dimensions")
    examples, seeds = points["examples"].max(), int(points["seeds"].max())
    over = f"{seeds} seeds" if seeds > 1 else "examples"
    note = f"at most {examples} examples, {points['dtype'].iloc[0]}; bars: 95 % over {over}"
    page.title(f"Forgetting\n{note}")
    page.legend(axes)


ANALYSIS = kit.Analysis(
    name="forgetting",
    description=__doc__,
    question="what did fine-tuning forget, and do intruder dimensions matter to it?",
    needs=kit.Needs.FACTORS | kit.Needs.SNAPSHOTS | kit.Needs.MODEL,
    compute=compute,
    plot=kit.Plot(draw, figure_table),
    summarize=summarize,
    options={
        "text": {"help": "a task or FILE.jsonl (default: what the pocket base was pretrained on)"},
        "examples": kit.option(256, "maximum number of examples of each text"),
        "batch_size": kit.option(32, "examples in one forward pass"),
        "dtype": kit.option("fp32", "what the model computes in", choices=("fp32", "bf16")),
    },
    position=87,
)


if __name__ == "__main__":
    kit.run_analysis(ANALYSIS)
