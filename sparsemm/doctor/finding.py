"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it.

    Attributes:
        name: what was looked at; several findings may share it.
        status: "ok"; "absent", where something optional is not there; "broken", where something is wrong.
        detail: what was found, without secrets.
        hint: what to do about it, unless it is "ok".
    """

    name: str
    status: Literal["ok", "absent", "broken"]
    detail: str
    hint: str = ""
