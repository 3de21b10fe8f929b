"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check, with a hint for the user."""

    name: str  # name of the thing that was checked; several findings may share it
    # "ok"; "absent" if something optional is missing; "broken" if something is wrong
    status: Literal["ok", "absent", "broken"]
    detail: str  # result in words, without secrets
    hint: str = ""  # advice for the user if the status is not "ok"
