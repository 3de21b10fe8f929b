"""Reads and checks the answers that the align stage wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsemm.datasets.records import Record
from sparsemm.errors import AlignError


@dataclass(frozen=True)
class AlignedAnswer:
    """One row of the align stage: answer token token_index[i] belongs to entry entry_index[i] of the record."""

    sample_id: str
    answer_ids: list[int]
    token_index: list[int]
    entry_index: list[int]


def read_aligned_answers(path: str | Path, records: list[Record]) -> list[AlignedAnswer]:
    """Reads artifacts/align/<model>.parquet, in the order of the records.

    Raises AlignError if the file is missing or damaged, or does not belong to these records.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(path)
    hint = "run the align stage again"
    if not Path(path).is_file():
        raise AlignError("no such file", where=where, hint="run the align stage first")
    try:
        rows = pq.read_table(path, columns=list(AlignedAnswer.__annotations__)).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise AlignError(f"not what the align stage writes: {error}", where=where, hint=hint) from error
    answers = {row["sample_id"]: AlignedAnswer(**row) for row in rows}
    if len(rows) != len(records) or set(answers) != {record.id for record in records}:
        raise AlignError("its samples are not those of the data set", where=where, hint=hint)
    for record in records:
        answer = answers[record.id]
        fits = (
            len(answer.token_index) == len(answer.entry_index)
            and all(0 <= i < len(answer.answer_ids) for i in answer.token_index)
            and all(0 <= j < len(record.entries) for j in answer.entry_index)
        )
        if not fits:
            raise AlignError(f"indices of sample {record.id!r} are out of range", where=where, hint=hint)
    return [answers[record.id] for record in records]
