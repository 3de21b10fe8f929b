"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check, with a hint for the user.

    Attributes:
        name: name of the thing that was checked; several findings may share it.
        status: "ok"; "absent" if something optional is missing; "broken" if something is wrong.
        detail: result in words, without secrets.
        hint: advice for the user if the status is not "ok".
    """

    name: str
    status: Literal["ok", "absent", "broken"]
    detail: str
    hint: str = ""
