"""Draws the figures that a paper about these runs needs, each with a caption and its numbers.

    python -m analyses.figures --run 'runs/sweep/*' --out paper/figures --venue acl

Runs that differ in their seeds only are one configuration: the mean over seeds, with its 95 % t
interval. FOLDER gets of each figure NAME.pdf (fonts are TrueType), NAME.png, NAME.csv (exactly what
is drawn) and NAME.caption.tex (what it shows, the data, the sample size and the interval);
figures.tex, which includes them all; and captions.md, which lists them, and says of each figure
that is missing what these runs lack.

What `python -m analyses.NAME --run RUN` has written into RUN/analyses since the run ended is read,
and the rest is computed. Two figures evaluate the models and take longest: ensemble_vs_single and
gate_expansion. Figures have no titles, and fill a column without being scaled (--venue).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analyses import kit
from analyses.figures.captions import document, index
from analyses.figures.drawing import draw_set
from analyses.kit.command import RUN
from subspace_lab import files
from subspace_lab.errors import exit_code_2_on_user_error


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line and write the set.

    Raises:
        UserError: if a run is not available, or the runs have nothing for any of the figures.
    """
    parser = argparse.ArgumentParser(
        prog="python -m analyses.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", "--runs", action="append", nargs="+", required=True, metavar="RUN", help=RUN)
    default = "(default: RUN/analyses/figures; for several runs comparisons/NAMES/figures)"
    add("--out", type=Path, metavar="FOLDER", help=f"where to write {default}")
    kit.add_width(parser)
    arguments = parser.parse_args()
    runs = kit.open_named_runs(arguments.run)
    out = arguments.out or kit.default_folder(runs) / "figures"
    width = kit.page_of(vars(arguments)).width
    drawn, missing = draw_set(runs, out, width=width)
    files.write_utf8(out / "figures.tex", document(drawn))
    files.write_utf8(out / "captions.md", index(drawn, missing))
    for figure in drawn:
        print(f"wrote {out / figure.name}.pdf, .png, .csv and .caption.tex")
    for name, reason in missing.items():
        print(f"no figure {name}: {reason}")
    print(f"wrote {out / 'figures.tex'}\nwrote {out / 'captions.md'}")
