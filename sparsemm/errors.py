"""Typed errors: what was wrong, where, and what to do next."""

from __future__ import annotations


class SparseMMError(Exception):
    """Base of every error a user can act on.

    Args:
        what: one sentence that says what was wrong.
        where: file, key, layer or record it was found in.
        hint: what to do next.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text} ({hint})" if hint else text)


class ParamsError(SparseMMError):
    """params.yaml holds an unknown key, a wrong type or an impossible value."""


class DataError(SparseMMError):
    """A record, image or parquet file does not fit its schema."""


class EmptyRecord(DataError):
    """An image or page with nothing to read on it."""


class FetchError(SparseMMError):
    """A source of data or checkpoints cannot be reached, refuses, or does not hold what was asked for."""


class CorruptFetch(FetchError):
    """What arrived is not what the source promised; it was thrown away, and another try starts afresh."""


class LayoutError(SparseMMError):
    """No layout supports the model, or a box does not lie on its image."""


class AlignError(SparseMMError):
    """An answer cannot be tied to its record."""


class ScoreTableError(SparseMMError):
    """A score table is damaged or belongs to another model."""


class BudgetError(SparseMMError):
    """A budget that no allocation can meet."""


class CacheError(SparseMMError):
    """The compressed cache was used in a way it cannot serve."""


class ModelError(SparseMMError):
    """A checkpoint cannot be loaded or is of an unsupported family."""


class PipelineError(SparseMMError):
    """A stage failed, or git or DVC could not do what the pipeline needs."""


class WatchError(SparseMMError):
    """A watched source of checkpoints cannot be asked, or holds what must not be fetched."""


class RegistryError(SparseMMError):
    """Something cannot be published, promoted or looked up, or is not what was published."""


class RegistryUnreachable(RegistryError):
    """The registry does not answer; the same call may work later."""


class EngineError(SparseMMError):
    """vLLM was asked for something that its plug-in for compressed caches does not serve."""
