"""The part `datasets` of params.yaml: sources of records."""

from __future__ import annotations

import posixpath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsemm.params.strict import Count, Strict

TypeSize = Literal["plain", "small", "large"]
Format = Literal["records_jsonl", "synthdog", "coco", "mlt2019", "ctw"]


class SyntheticParams(Strict):
    """Pages that SparseMM draws itself."""

    source: Literal["synthetic"] = Field(description="where the records come from")
    split: Literal["train", "calibration", "evaluation"] = Field(description="first of three disjoint splits")
    samples: Count = Field(description="records to keep")
    seed: int = Field(0, ge=0)
    type_size: Annotated[TypeSize, Field(description="size of the letters: 9 to 11, 8, or 12 px")] = "plain"


class _External(Strict):
    """Fields of every source but synthetic pages."""

    samples: Count = Field(description="records to keep, at most")
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[first, stop) of the source's rows (of a pdf source: documents) to draw from; default all"
    )
    revision: str | None = Field(None, min_length=1, description="hub commit or content hash that the source must have")
    licence: str | None = Field(None, min_length=1, description="written into every record; may come from a hub card")
    max_bad: float = Field(0.05, ge=0.0, le=1.0, description="share of bad rows that are skipped; more is an error")

    @field_validator("rows")
    @classmethod
    def _rise(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}) holds no row")
        return value


class _Formatted(_External):
    """A source whose files may be in first of several formats."""

    format: Format = Field(description="format of the files")
    split: str | None = Field(None, min_length=1, description="name of a split in the files: train, val, ...")


class HubParams(_Formatted):
    """A data set on the Hugging Face hub."""

    source: Literal["hub"] = Field(description="where the records come from")
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name; HF_ENDPOINT and HF_TOKEN apply")


class S3Params(_Formatted):
    """Files on S3 or any store with the same protocol."""

    source: Literal["s3"] = Field(description="where the records come from")
    location: str = Field(pattern=r"^s3://[^/@\s]+(/.*)?$", description="s3://bucket/prefix; AWS_ENDPOINT_URL applies")
    licence: str = Field(min_length=1, description="written into every record")


class FolderParams(_Formatted):
    """Files in a local folder."""

    source: Literal["folder"] = Field(description="where the records come from")
    path: str = Field(min_length=1, description="folder, from the repository's root")
    licence: str = Field(min_length=1, description="written into every record")


class PdfParams(_External):
    """Pages of born-digital PDF files."""

    source: Literal["pdf"] = Field(description="where the records come from")
    path: str = Field(min_length=1, description="PDF file, or folder of them, from the repository's root")
    licence: str = Field(min_length=1, description="written into every record")
    dpi: int = Field(144, ge=36, le=600, description="resolution of the page images, in pixels per inch")


DatasetParams = Annotated[
    SyntheticParams | HubParams | S3Params | FolderParams | PdfParams, Field(discriminator="source")
]


def _place(dataset: DatasetParams) -> str:
    """Returns a normalised name of the place that holds a data set's rows."""
    if isinstance(dataset, SyntheticParams):
        return "synthetic"
    if isinstance(dataset, HubParams):
        return dataset.repo.lower()
    if isinstance(dataset, S3Params):
        return dataset.location.rstrip("/")
    return posixpath.normpath(dataset.path)


def may_share(first: DatasetParams, second: DatasetParams) -> str | None:
    """Returns why two data sets might share a record, or None if they cannot.

    Names are compared, not contents: a copy of a data set at a second place is not noticed.
    """
    if first.source != second.source:
        return None
    splits = [None if isinstance(dataset, PdfParams) else dataset.split for dataset in (first, second)]
    if isinstance(first, SyntheticParams) or isinstance(second, SyntheticParams):
        return "draw from the same split" if splits[0] == splits[1] else None
    places = _place(first), _place(second)
    if places[0] != places[1]:
        inside = any(b.startswith("" if a == "." else a + "/") for a, b in (places, places[::-1]))
        local_or_s3 = not isinstance(first, HubParams)
        overlap = f"overlap: of {places[0]} and {places[1]} one contains the other"
        return overlap if inside and local_or_s3 else None
    if None not in splits and splits[0] != splits[1]:
        return None
    if first.rows and second.rows and (first.rows[1] <= second.rows[0] or second.rows[1] <= first.rows[0]):
        return None
    return f"may draw the same rows of {places[0]}; give them different splits, or `rows` that do not overlap"
