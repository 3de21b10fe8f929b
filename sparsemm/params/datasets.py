"""params.yaml, `datasets`: where records come from."""

from __future__ import annotations

import posixpath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsemm.params.base import Count, Strict

TypeSize = Literal["plain", "small", "large"]
Format = Literal["records_jsonl", "synthdog", "coco", "mlt2019", "ctw"]


class SyntheticParams(Strict):
    """Pages that are drawn here."""

    source: Literal["synthetic"] = Field(description="where the records come from")
    split: Literal["train", "calibration", "evaluation"] = Field(description="which of the disjoint draws")
    samples: Count = Field(description="records to keep")
    seed: int = Field(0, ge=0)
    type_size: Annotated[TypeSize, Field(description="of the letters: 9 to 11, 8, or 12 px")] = "plain"


class _Drawn(Strict):
    """What every source that is not drawn here has."""

    samples: Count = Field(description="records to keep, at most")
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[first, stop) of the source's rows (of a pdf source: documents) to draw from; default all"
    )
    revision: str | None = Field(
        None, min_length=1, description="what the source must hold: hub commit or content hash"
    )
    licence: str | None = Field(None, min_length=1, description="written into every record; a hub card may say it")
    max_bad: float = Field(0.05, ge=0.0, le=1.0, description="share of bad rows that are skipped; more is an error")

    @field_validator("rows")
    @classmethod
    def _rise(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}) holds no row")
        return value


class _Formatted(_Drawn):
    """A source whose files may be in one of several formats."""

    format: Format = Field(description="what the files are")
    split: str | None = Field(None, min_length=1, description="named part, as the files call it: train, val, ...")


class HubParams(_Formatted):
    """A data set on the Hugging Face hub."""

    source: Literal["hub"] = Field(description="where the records come from")
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; HF_ENDPOINT and HF_TOKEN count")


class S3Params(_Formatted):
    """Files on S3 or any store that speaks its protocol."""

    source: Literal["s3"] = Field(description="where the records come from")
    location: str = Field(pattern=r"^s3://[^/@\s]+(/.*)?$", description="s3://bucket/prefix; AWS_ENDPOINT_URL counts")
    licence: str = Field(min_length=1, description="written into every record")


class FolderParams(_Formatted):
    """Files in a local folder."""

    source: Literal["folder"] = Field(description="where the records come from")
    path: str = Field(min_length=1, description="folder, from the repository's root")
    licence: str = Field(min_length=1, description="written into every record")


class PdfParams(_Drawn):
    """Pages of born-digital PDF files."""

    source: Literal["pdf"] = Field(description="where the records come from")
    path: str = Field(min_length=1, description="PDF file, or folder of them, from the repository's root")
    licence: str = Field(min_length=1, description="written into every record")
    dpi: int = Field(144, ge=36, le=600, description="pixels an inch of page")


DatasetParams = Annotated[
    SyntheticParams | HubParams | S3Params | FolderParams | PdfParams, Field(discriminator="source")
]


def _place(given: DatasetParams) -> str:
    """Where a data set's rows are, so that equal places have equal names."""
    if isinstance(given, SyntheticParams):
        return "synthetic"
    if isinstance(given, HubParams):
        return given.repo.lower()
    if isinstance(given, S3Params):
        return given.location.rstrip("/")
    return posixpath.normpath(given.path)


def may_share(one: DatasetParams, other: DatasetParams) -> str | None:
    """Why two data sets might hold the same record, or None if they cannot.

    Names are compared, not contents: a copy of a data set at a second place is not noticed.
    """
    if one.source != other.source:
        return None
    splits = [None if isinstance(given, PdfParams) else given.split for given in (one, other)]
    if isinstance(one, SyntheticParams) or isinstance(other, SyntheticParams):
        return "draw from the same split" if splits[0] == splits[1] else None
    places = _place(one), _place(other)
    if places[0] != places[1]:
        inside = any(b.startswith("" if a == "." else a + "/") for a, b in (places, places[::-1]))
        local_or_s3 = not isinstance(one, HubParams)
        return f"overlap: {places[0]} and {places[1]} lie one inside the other" if inside and local_or_s3 else None
    if None not in splits and splits[0] != splits[1]:
        return None
    if one.rows and other.rows and (one.rows[1] <= other.rows[0] or other.rows[1] <= one.rows[0]):
        return None
    return f"may draw the same rows of {places[0]}; give them different splits, or `rows` that do not overlap"
