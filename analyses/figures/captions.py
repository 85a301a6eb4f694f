r"""Captions: what a figure shows, the data, the sample sizes and the intervals; for any LaTeX.

Text is ASCII but for letters that every engine reads. figures.tex compiles by itself, and its
`figure` environments can be copied into a paper, whose `\input` brings the caption and its label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "°": r"$^\circ$", "×": r"$\times$", "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "±": r"$\pm$",
}  # fmt: skip
"""What characters of a caption are in LaTeX's text mode."""
DOCUMENT = r"""\documentclass{article}
\usepackage[margin=1in]{geometry}
\usepackage{graphicx}
\begin{document}
%s\end{document}
"""
FIGURE = r"""
\begin{figure}[htbp]
  \centering
  \includegraphics{%s}
  \input{%s}
\end{figure}
\clearpage
"""


@dataclass(frozen=True)
class Caption:
    """The caption of a figure that was drawn, and a sentence for each run that is not in it."""

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
    """List the captions in Markdown, and why the `missing` figures were not drawn."""
    parts = ["# Figures"]
    for caption in drawn:
        parts += [f"## {caption.name}.pdf", caption.text, f"Numbers: {caption.name}.csv."]
        if caption.left_out:
            parts += ["Not in it:", "\n".join(f"- {sentence}" for sentence in caption.left_out)]
    if missing:
        reasons = "\n".join(f"- {name}: {reason}" for name, reason in missing.items())
        parts += ["## Not drawn", reasons]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Write plain text for LaTeX.

    >>> print(escape("keep_prob 0.5, 95 %"))
    keep\_prob 0.5, 95 \%
    """
    return "".join(SPECIAL.get(character, character) for character in text)


def caption_file(caption: Caption) -> str:
    r"""Write a figure's `\caption` and `\label`."""
    return f"\\caption{{{escape(caption.text)}}}\n\\label{{fig:{caption.name}}}\n"


def document(captions: Iterable[Caption]) -> str:
    """Write the document that includes all figures, unscaled, with their captions."""
    figures = (FIGURE % (f"{one.name}.pdf", f"{one.name}.caption.tex") for one in captions)
    return DOCUMENT % "".join(figures)
