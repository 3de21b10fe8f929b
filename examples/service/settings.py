"""Reads the settings of the service from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsemm.errors import ParamsError

PREFIX = "SPARSEMM_SERVICE_"


class Settings(BaseModel):
    """One environment variable per field: `SPARSEMM_SERVICE_` and the field's name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, description="key under models of params.yaml")
    params: Path = Field(Path("params.yaml"), description="params file with the model, window, rho and mode")
    scores: str = Field("", description="file or models:/ address; by default the champion of the model")
    method: str = Field("sparsemm", description="name for compressed_cache; auto is that of the champion's recipe")
    budget: int | None = Field(None, ge=1, description="mean slots per KV head; by default the largest of params")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_new_tokens: int = Field(128, ge=1, description="tokens of one answer")
    max_batch: int = Field(8, ge=1, description="waiting requests that are answered together")
    max_requests: int = Field(32, ge=1, description="waiting and running requests; more get 503")
    max_upload_bytes: int = Field(8 * 2**20, ge=1, description="bytes of a whole request body")
    max_image_pixels: int = Field(16_000_000, ge=1, description="width x height, read before anything is decoded")
    max_question_characters: int = Field(2000, ge=1)
    timeout_seconds: float = Field(60.0, gt=0, description="for receiving a request, and again for its answer")
    refresh_seconds: float = Field(30.0, gt=0, description="between two checks for a newer score table")

    @model_validator(mode="after")
    def _champion(self) -> Self:
        if not self.scores:
            object.__setattr__(self, "scores", f"models:/visual-heads.{self.model}@champion")
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Reads and checks the variables.

        Raises:
            ParamsError: if variables are unknown, missing or invalid; it gives their names, never their values.
        """
        values = {name[len(PREFIX) :].lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            details = error.errors(include_url=False)
            reasons = [f"{PREFIX}{str(detail['loc'][0]).upper()}: {detail['msg']}" for detail in details]
            raise ParamsError("; ".join(reasons), where="environment") from None
