"""What the training loop asks of a recipe; there are two, `Scratch` and `Tuning`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sparsemm.datasets.synthetic import PageStyle
from sparsemm.files import write_json
from sparsemm.training.batches import Batch


class Recipe(Protocol):
    """A model, what of it is trained, on which pages, and by which losses.

    Attributes:
        model, processor: what is trained; the model is on its device, in training mode.
        optimizers: over what is trained.
        weights: of the losses, by name; other figures are only printed.
        stages: of the curriculum: page styles used in turn, and the accuracies (reading, answering) that end it.
        prose_from: the first step that may be on prose.
    """

    model: Any
    processor: Any
    optimizers: list[torch.optim.Optimizer]
    weights: dict[str, float]
    stages: Sequence[tuple[tuple[PageStyle, ...], float, float]]
    prose_from: int

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by the name it is saved under."""

    def plan(self, number: int, stage: int) -> tuple[PageStyle, bool]:
        """Style of page batch `number` in a stage, and whether it is read (else asked about)."""

    def losses(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """Losses of page batch `number`, and figures to print."""

    def prose_loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Loss of (B, S) windows of prose."""

    def rate_at(self, progress: float, step: int) -> float:
        """Multiplier of the learning rates at a step, `progress` of all steps being done."""

    def save(self, output: Path) -> None:
        """Write the folder that is committed."""


def save(model: Any, processor: Any, output: Path) -> None:
    """Write model and processor so that the Auto classes load them: weights in fp16, to be run in fp32."""
    output.mkdir(parents=True, exist_ok=True)
    model.to("cpu").half().save_pretrained(output)
    processor.save_pretrained(output)
    model.float()
    # save_pretrained writes down the dtype of the weights; transformers takes it for the dtype to run in.
    config = (output / "config.json").read_text(encoding="utf-8")
    write_json(output / "config.json", json.loads(config.replace('"float16"', '"float32"')))
