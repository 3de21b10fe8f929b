"""The chase of one model over one data set, in shards that are stored as soon as they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparsemm.chase.aligned_answers import read_aligned_answers
from sparsemm.chase.early_stop import shards_needed
from sparsemm.chase.scoring import checkpoint_header, score_records
from sparsemm.chase.shards import Shard, load_shard, save_shard
from sparsemm.datasets.records import read_records
from sparsemm.dependencies import identity
from sparsemm.files import result_path, sha256_file, work_folder
from sparsemm.layouts import get_layout
from sparsemm.models import load_model
from sparsemm.params import Params


class ShardedChase:
    """Computes the shards of one model's chase; several processes may share the work.

    Attributes:
        count: number of shards.
        work: folder of the partial results; the chase stage removes it when the table is written.
        header: the score table's header, without what only the shards can say.
    """

    def __init__(self, params: Params, key: str, root: Path = Path("."), dataset: str | None = None) -> None:
        """Loads records, answers and the model.

        Args:
            params: the parsed params.yaml.
            key: name of the model there.
            root: root folder of the project.
            dataset: a data set of `robustness`; None for `chase.dataset`.

        Raises:
            AlignError: if the align stage's file is missing or does not fit the data set.
            ParamsError: if the model or the data set is unknown.
        """
        params = params.of(key).over(dataset)
        self.settings, entry = params.chase, params.model(key)
        source = root / "artifacts" / "datasets" / f"{self.settings.dataset}.parquet"
        aligned = result_path(root, "align", key, ".parquet", dataset)
        self.records = read_records(source)
        self.answers = read_aligned_answers(aligned, self.records)
        self.model, self.processor = load_model(entry)
        self.layout = get_layout(entry.family)
        model = checkpoint_header(self.model, entry)
        self.shape = (model["num_layers"], model["num_heads"])
        self.header = {
            "dataset": self.settings.dataset,
            "dataset_sha256": sha256_file(source),
            "align_sha256": sha256_file(aligned),
            "prompt": self.settings.prompt,
            "mode": self.settings.answer,
            "params": self.settings.model_dump(mode="json"),
            **model,
        }
        # The rule for stopping does not change what a shard holds.
        parts = self.header | {"params": self.settings.model_dump(mode="json", exclude={"stop"})}
        self.work = work_folder(root, "chase", key, dataset)
        self.folder = self.work / identity(parts, __name__)
        self.count = -(-len(self.records) // self.settings.shard_size)

    def shard(self, number: int) -> Shard:
        """Returns a shard: the stored one, or else a new one, which is stored."""
        shard = self._stored(number)
        if shard is None:
            part = self._part(number)
            records, answers = self.records[part], self.answers[part]
            shard = score_records(self.model, self.processor, self.layout, records, answers, self.settings)
            save_shard(self._path(number), shard, [record.id for record in records])
        return shard

    def shards_needed(self) -> int | None:
        """Returns how many shards are enough, as far as the first stored ones show; None if they do not."""

        def stored() -> Iterator[Shard]:
            for number in range(self.count):
                shard = self._stored(number)
                if shard is None:
                    return
                yield shard

        return shards_needed(stored(), self.settings.stop)

    def _part(self, number: int) -> slice:
        size = self.settings.shard_size
        return slice(number * size, (number + 1) * size)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"

    def _stored(self, number: int) -> Shard | None:
        return load_shard(self._path(number), [record.id for record in self.records[self._part(number)]], self.shape)
