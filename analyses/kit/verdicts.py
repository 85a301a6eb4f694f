"""Verdicts in HTML: in words, with a sign, and in a color that the page's style gives them."""

from __future__ import annotations

KINDS = {
    "supported": "good",
    "supported in part": "partly",
    "contradicted": "bad",
    "better": "good",
    "worse": "bad",
    "agree": "good",
    "disagree": "bad",
}
"""Of verdicts; the others leave it open."""
SIGNS = {"good": "✓", "partly": "±", "bad": "✗", "open": "○"}


def verdict_html(verdict: str) -> str:
    """Mark a verdict as one.

    >>> verdict_html("supported")
    "<span class='verdict good'>✓ supported</span>"
    """
    kind = KINDS.get(verdict, "open")
    return f"<span class='verdict {kind}'>{SIGNS[kind]} {verdict}</span>"
