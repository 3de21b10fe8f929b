"""Typed errors that say what is wrong, where, and what to do next."""

from __future__ import annotations


class SparseMMError(Exception):
    """Base class of all errors that a user can act on.

    Args:
        what: one sentence that says what is wrong.
        where: the file, key, layer or record with the problem.
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
    """A source of data or checkpoints cannot be reached, refuses access, or lacks the requested file."""


class CorruptFetch(FetchError):
    """The received data does not match what the source promised; it was deleted, and the next attempt starts anew."""


class LayoutError(SparseMMError):
    """No layout supports the model, or a box does not lie on its image."""


class AlignError(SparseMMError):
    """An answer cannot be aligned with its record."""


class ScoreTableError(SparseMMError):
    """A score table is damaged or belongs to another model."""


class BudgetError(SparseMMError):
    """A method, budget, option or matrix of scores is invalid."""


class PromptTooLong(BudgetError):
    """A method cannot serve a prompt of this length within its budget; it may serve shorter ones."""


class CacheError(SparseMMError):
    """The compressed cache does not support this model or this use."""


class ModelError(SparseMMError):
    """A checkpoint cannot be loaded or is of an unsupported family."""


class PipelineError(SparseMMError):
    """A stage failed, or git or DVC failed in the pipeline."""


class WatchError(SparseMMError):
    """A watched source of checkpoints cannot be queried, or has a checkpoint that must not be fetched."""


class RegistryError(SparseMMError):
    """A score table cannot be published, promoted or looked up, or differs from the published one."""


class RegistryUnreachable(RegistryError):
    """The registry does not answer; the same call may work later."""


class EngineError(SparseMMError):
    """The vLLM plug-in for compressed caches does not support a model or a setting of the engine."""
