"""The base class of all parts of params.yaml, which is strict, frozen and refuses unknown keys."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

Count = Annotated[int, Field(ge=1)]


def check_key(key: str) -> str:
    """Returns a key of params.yaml if it can be part of file and stage names. Raises ValueError if it cannot."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
        raise ValueError(f"key {key!r} may hold only letters, digits, - and _")
    return key


class Strict(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class WithoutRepeats(Strict):
    """A part whose lists hold every entry once."""

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, value: Any) -> Any:
        if isinstance(value, tuple) and len(set(value)) != len(value):
            raise ValueError("repeats an entry")
        return value
