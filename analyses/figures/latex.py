r"""Captions and the document of all figures in LaTeX, for any engine.

Text is ASCII but for letters that every engine reads; `figures.tex` compiles by itself, and its
`figure` environments can be copied into a paper, whose `\input` brings the caption and its label.
"""

from __future__ import annotations

from collections.abc import Iterable

from analyses.figures.captions import Caption

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
