"""What every PNG figure shares: its width and how it becomes bytes."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402

__all__ = ["WIDTH", "Figure", "png"]

WIDTH = 5.4  # inches: text of 10 points stays readable where the picture is as wide as a phone


def png(figure: Figure) -> bytes:
    """PNG bytes without a date or a program name in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
