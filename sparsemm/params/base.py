"""What every part of params.yaml has in common: strict, frozen, unknown keys refused."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


def check_key(key: str) -> str:
    """A key of params.yaml that names files and stages.

    Raises:
        ValueError: if it could not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
        raise ValueError(f"key {key!r} may hold only letters, digits, - and _")
    return key


def without_repeats(value: tuple[object, ...]) -> tuple[object, ...]:
    """A list of params.yaml whose entries are done one after the other.

    Raises:
        ValueError: if one would be done twice.
    """
    if len(set(value)) != len(value):
        raise ValueError("repeats an entry")
    return value


class Strict(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
