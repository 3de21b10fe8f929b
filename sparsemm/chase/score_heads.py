"""The whole chase as one function for notebooks and scripts, without params.yaml or files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sparsemm.align.stage import align_records
from sparsemm.chase.scoring import model_header, score_records, score_table
from sparsemm.datasets.records import Record
from sparsemm.errors import AlignError
from sparsemm.layouts import family_of, get_layout
from sparsemm.params.stages import ChaseParams
from sparsemm.scores import ScoreTable


def score_heads(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    *,
    prompt: str = "Read the page.",
    answer: Literal["greedy", "ground_truth"] = "greedy",
    batch_size: int = 32,
    max_new_tokens: int = 128,
) -> ScoreTable:
    """Scores every attention head of a model by how often it attends to the word that the model says next.

    The stages `align` and `chase` do the same for a model of params.yaml, and can be resumed.

    Args:
        model: a Hugging Face image-text-to-text model in eval mode, of a family in docs/families.md.
        processor: the model's processor.
        records: pages or pictures with the words on them; each is validated.
        prompt: the prompt that makes the model read them.
        answer: the text that is aligned with the words: the model's own answer or the text of the records. Of the
            latter, only those tokens count that the model itself predicts.
        batch_size: records that go through the model together.
        max_new_tokens: longest answer.

    Returns:
        scores and hits, both (L, Hq), for `compressed_cache(model, "sparsemm", budget=..., scores=table)`; its `save`
        writes them.

    Raises:
        AlignError: if no token of any answer belongs to a word of its page.
        DataError: if a record is not valid.
        LayoutError: if the model's family is not supported.
        ScoreTableError: if no head ever hit a word.
    """
    if not records:
        raise AlignError("there is no record to score heads with")
    family = family_of(model.config.to_dict())
    settings = ChaseParams(
        dataset="records",
        batch_size=batch_size,
        prompt=prompt,
        answer=answer,
        align="ordered",
        max_new_tokens=max_new_tokens,
        shard_size=len(records),
        max_bad=1.0,
        stop=None,
    )
    alignments = align_records(model, processor, [record.validate() for record in records], settings, family)
    if not any(alignment.token_index for alignment in alignments):
        refused = next((alignment.refused for alignment in alignments if alignment.refused), None)
        hint = "can the model read these pages with this prompt?"
        raise AlignError("no answer token belongs to any word of its page", where=refused, hint=hint)
    shard = score_records(model, processor, get_layout(family), records, alignments, settings)
    header = {
        "model": model.config.name_or_path or type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "family": family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "dataset": _sources(records),
        "prompt": prompt,
        "mode": answer,
        **model_header(model),
    }
    return score_table(shard, header)


def _sources(records: Sequence[Record]) -> str:
    """Returns where the records come from: their sources in order, at most three by name."""
    sources = list(dict.fromkeys(record.source for record in records))
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    return ", ".join(sources[:3]) + more
