"""The profile stage: measures every method and length for one model, or for a 7B shape with random weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sparsemm.datasets.records import read_records
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.profiling.latency import prompt_of_length
from sparsemm.profiling.measurements import Profile, measure
from sparsemm.profiling.shapes import SHAPES, check_room, random_model, random_scores
from sparsemm.profiling.table import write
from sparsemm.prompts import move_inputs
from sparsemm.scores import ScoreTable


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Writes artifacts/profile/<key>.csv, whose columns `sparsemm.profiling.table` explains, and .json."""
    write(root / "artifacts" / "profile", profile_model(params, key, root))


def profile_model(params: Params, key: str, root: Path = Path(".")) -> Profile:
    """Measures every method and length for one model, on the first page of `evaluate.dataset`.

    Raises ScoreTableError if the score table is missing or of another model, and DataError if a length is too short for
    the image.
    """
    params = params.of(key)
    model, processor = load_model(params.model(key))
    scores = ScoreTable.load(root / "artifacts" / "scores" / f"{key}.safetensors")
    scores.check_model(model.config)
    (record,) = read_records(root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet", limit=1)
    inputs = partial(_page, model, processor, record.image, params.profile.batch_size)
    return measure(params, key, model, scores, inputs)


def run_shape(params: Params, name: str, root: Path = Path(".")) -> None:
    """Writes artifacts/profile/shapes/<name>.csv and .json: random weights in bf16, random scores and tokens.

    Raises ModelError if the device has not enough memory for the shape at the longest length.
    """
    settings, device = params.profile, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, longest = SHAPES[name], max(settings.lengths) + settings.new_tokens
    check_room(name, longest, settings.batch_size, torch.bfloat16, device)
    model = random_model(shape, torch.bfloat16, device, longest)

    def inputs(length: int) -> dict[str, Any]:
        ids = torch.randint(3, shape.vocab_size, (settings.batch_size, length), dtype=torch.int64, device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    folder = root / "artifacts" / "profile" / "shapes"
    write(folder, measure(params, name, model, random_scores(shape), inputs))


def _page(model: Any, processor: Any, image: Image.Image, batch_size: int, length: int) -> dict[str, Any]:
    return move_inputs(prompt_of_length(processor, image, length, batch_size), model)
