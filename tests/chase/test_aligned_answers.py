"""What the align stage wrote is checked against the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemm.datasets.synthetic import draw_record
from sparsemm.errors import AlignError
from tests.chase.test_stage import STYLE, write_align


def test_alignments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from sparsemm.chase.aligned_answers import read_aligned_answers

    records = [draw_record("calibration", 0, i, STYLE) for i in range(2)]
    good = [{"sample_id": r.id, "answer_ids": [5, 6], "token_index": [1], "entry_index": [0]} for r in records]
    path = tmp_path / "m.parquet"
    with pytest.raises(AlignError, match="run the align stage first"):
        read_aligned_answers(path, records)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(AlignError, match="not what the align stage writes"):
        read_aligned_answers(path, records)
    write_align(path, good[::-1])
    assert [one.sample_id for one in read_aligned_answers(path, records)] == [r.id for r in records]
    for rows, reason in [
        (good[:1], "not those of the data set"),
        ([good[0], good[0]], "not those of the data set"),
        ([good[0], {**good[1], "token_index": [2]}], "out of range"),
        ([good[0], {**good[1], "token_index": [-1]}], "out of range"),
        ([good[0], {**good[1], "entry_index": [99]}], "out of range"),
        ([good[0], {**good[1], "entry_index": []}], "out of range"),
    ]:
        write_align(path, rows)
        with pytest.raises(AlignError, match=reason):
            read_aligned_answers(path, records)
