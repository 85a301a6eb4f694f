"""Captions: what a figure shows, the data, the sample sizes and the intervals; and their index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """The caption of a figure that was drawn.

    Attributes:
        name: of the figure's files.
        shows: what it shows.
        data: configurations, seeds, and what they share.
        n: sample sizes.
        interval: what the intervals are.
        left_out: a sentence for each run that is not in it.
    """

    name: str
    shows: str
    data: str
    n: str
    interval: str
    left_out: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The caption in plain text, without the runs that are not in it."""
        return f"{self.shows} Data: {self.data}. n: {self.n}. Interval: {self.interval}."


def index(drawn: Sequence[Caption], missing: Mapping[str, str]) -> str:
    """List the captions in Markdown, and what the runs lack for the other figures.

    Args:
        drawn: the captions.
        missing: why a figure was not drawn, by its name.
    """
    parts = ["# Figures"]
    for caption in drawn:
        parts += [f"## {caption.name}.pdf", f"{caption.text}", f"Numbers: {caption.name}.csv."]
        if caption.left_out:
            sentences = (f"- {sentence}" for sentence in caption.left_out)
            parts.append("Not in it:\n\n" + "\n".join(sentences))
    if missing:
        sentences = (f"- {name}: {reason}" for name, reason in missing.items())
        parts.append("## Not drawn\n\n" + "\n".join(sentences))
    return "\n\n".join(parts) + "\n"
