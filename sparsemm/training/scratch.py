"""Trains a small model from scratch, with auxiliary read-outs that make it learn sooner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsemm.datasets.synthetic import ANCHORS, PageStyle
from sparsemm.files import write_json
from sparsemm.models import transformers_errors, whole_model
from sparsemm.training.architectures import build
from sparsemm.training.batches import CHARACTERS, IGNORE, Batch, BatchMaker
from sparsemm.training.prose import prose_loss

LINE_LAYER = 2  # the decoder layer from whose output the line of a visual token is read
POINTER_LAYER = 4  # the decoder layer from whose output the place of the next answer token on the page is read
VISION_STEPS = 400  # steps on pages in which only the vision tower is trained
MOST_VISUAL = 72  # high-resolution visual tokens of the largest page
WEIGHTS = {"answer": 1.0, "characters": 0.3, "lines": 0.3, "pointers": 0.3}


class Probes(nn.Module):
    """Linear read-outs that speed up learning and are discarded afterwards.

    `characters`: visual features (B, N, hidden) -> two characters a token. `lines`: hidden states of the visual
    tokens after layer `LINE_LAYER` -> the anchor of the line the token lies on. `pointers`: hidden states of the
    rows that predict answer tokens, after layer `POINTER_LAYER` -> the visual token to look at.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.characters = nn.Linear(hidden, 2 * len(CHARACTERS), dtype=torch.float32)
        self.lines = nn.Linear(hidden, len(ANCHORS), dtype=torch.float32)
        self.pointers = nn.Linear(hidden, MOST_VISUAL, dtype=torch.float32)


@contextmanager
def captured(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Collects visual features and the probed layers' hidden states of the forward passes inside the block."""
    states: dict[str, torch.Tensor] = {}
    inner = model.model
    vision = inner.multi_modal_projector if hasattr(inner, "multi_modal_projector") else inner.visual.merger

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [
        vision.register_forward_hook(keep("features")),
        inner.language_model.layers[LINE_LAYER - 1].register_forward_hook(keep("lines")),
        inner.language_model.layers[POINTER_LAYER - 1].register_forward_hook(keep("pointers")),
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _grid_features(features: torch.Tensor, batch: Batch, qwen: bool) -> torch.Tensor:
    """Returns the visual features of the high-resolution grid in raster order: (B, N, hidden)."""
    size, count = batch.lines.shape
    if qwen:
        return features.view(size, count, -1)
    tiles = features.view(size, -1, 6, 6, features.shape[-1])[:, 1:]  # without the thumbnail
    return tiles.permute(0, 2, 1, 3, 4).reshape(size, count, -1)  # pages are one tile high


def _grid_hidden(hidden: torch.Tensor, batch: Batch, image_id: int, qwen: bool) -> torch.Tensor:
    """Returns the hidden states of the high-resolution grid in raster order, without newlines: (B, N, hidden)."""
    size, count = batch.lines.shape
    visual = hidden[batch.inputs["input_ids"] == image_id].view(size, -1, hidden.shape[-1])
    if qwen:
        return visual
    return visual[:, 36:].reshape(size, 6, count // 6 + 1, -1)[:, :, :-1].reshape(size, count, -1)


# Stages of the curriculum: page styles used in turn, and the running accuracies (reading, answering) that end a stage.
STAGES: tuple[tuple[tuple[PageStyle, ...], float, float], ...] = (
    ((PageStyle(1, 6, (1, 2)),), 0.93, 0.0),
    ((PageStyle(1, 6, (2, 4)),), 0.93, 0.0),
    ((PageStyle(1, 6, (3, 6)),), 0.93, 0.85),
    ((PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12))), 2.0, 2.0),
)


def optimizers(model: Any, probes: Probes) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices inside the layers, and AdamW for embeddings, norms, convolutions and probes."""
    inside = [
        p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n or ".blocks." in n and p.ndim == 2
    ]
    inside_ids = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in inside_ids] + list(probes.parameters())
    return [
        torch.optim.Muon(inside, lr=0.02, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def save(model: Any, processor: Any, output: Path) -> None:
    """Writes model and processor for the Auto classes: weights in fp16, a config that says fp32."""
    output.mkdir(parents=True, exist_ok=True)
    model.to("cpu").half().save_pretrained(output)
    processor.save_pretrained(output)
    model.float()
    # save_pretrained writes the dtype of the weights, which transformers would also use to run the model.
    config = (output / "config.json").read_text(encoding="utf-8")
    write_json(output / "config.json", json.loads(config.replace('"float16"', '"float32"')))


class Scratch:
    """The recipe of the small checkpoints: a model in training mode, its pages, its losses and their optimizers.

    `Tuning` is another recipe with the same interface for the training loop. With `initial`, a trained checkpoint to
    start from, there are no steps of the vision tower alone.
    """

    stages = STAGES
    weights = WEIGHTS  # of the losses by name; other figures are only printed
    prose_from = 0  # the first step that may be on prose

    def __init__(self, name: str, seed: int, device: str, initial: Path | None = None) -> None:
        self.model, self.processor = build(name, seed)
        if initial is not None:
            kind = type(self.model)
            with transformers_errors(str(initial), "name the folder of a trained checkpoint"):
                self.model = whole_model(kind, initial, str(initial), dtype=torch.float32, local_files_only=True)
        self.model.to(device).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.probes = Probes(self.model.config.text_config.hidden_size).to(device)
        self.vision_steps = 0 if initial else VISION_STEPS
        self.optimizers = optimizers(self.model, self.probes)
        maker = BatchMaker(self.processor, seed)
        self.image_id, self.qwen = maker.image_id, maker.qwen

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trained parameters by name."""
        modules = {"model": self.model, "probes": self.probes}
        return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.named_parameters()}

    def plan(self, number: int, stage: int) -> tuple[PageStyle, bool]:
        """Returns the style of page batch `number` in a stage, and whether it is read (else asked about).

        The first `vision_steps` batches train the vision tower alone, on full pages.
        """
        styles = STAGES[-2 if number < self.vision_steps else stage][0]
        return styles[number // 2 % len(styles)], number % 5 < 3 if stage < 2 else number % 2 == 0

    def losses(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """Returns the losses of page batch `number`, and the answers' token accuracy; all scalars."""
        if number < self.vision_steps:
            return {"characters": self._character_loss(self._visual_features(batch), batch)}
        with captured(self.model) as states:
            output = self.model(**batch.inputs, use_cache=False)
        in_answer = batch.labels[:, 1:] != IGNORE
        logits, tokens = output.logits[:, :-1][in_answer].float(), batch.labels[:, 1:][in_answer]
        pointed = batch.pointers[:, 1:] != IGNORE
        pointers = self.probes.pointers(states["pointers"][:, :-1][pointed].float())
        lines = self.probes.lines(_grid_hidden(states["lines"], batch, self.image_id, self.qwen).float())
        return {
            "answer": F.cross_entropy(logits, tokens),
            "characters": self._character_loss(states["features"], batch),
            "lines": F.cross_entropy(lines.flatten(0, 1), batch.lines.flatten(), ignore_index=IGNORE),
            "pointers": F.cross_entropy(pointers, batch.pointers[:, 1:][pointed]),
            "accuracy": (logits.argmax(-1) == tokens).float().mean().detach(),
        }

    def _visual_features(self, batch: Batch) -> torch.Tensor:
        """Computes the features of vision tower and projector, without the language model."""
        inner, pixels = self.model.model, batch.inputs["pixel_values"]
        if self.qwen:
            with captured(self.model) as states:
                inner.visual(pixels, grid_thw=batch.inputs["image_grid_thw"])
            return states["features"]
        layers = inner.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
        features: torch.Tensor = inner.multi_modal_projector(layers[self.model.config.vision_feature_layer][:, 1:])
        return features

    def _character_loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns the cross-entropy of the character read-out, with weights 0.7 for characters and 0.3 for blanks."""
        logits = self.probes.characters(_grid_features(features, batch, self.qwen).float())
        targets = batch.characters.flatten()
        each = F.cross_entropy(logits.unflatten(-1, (2, -1)).flatten(0, 2), targets, reduction="none")
        written = targets != 0
        return 0.7 * each[written].mean() + 0.3 * each[~written].mean()

    def prose_loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Returns the loss of (B, S) windows of prose."""
        return prose_loss(self.model, windows)

    def rate_at(self, progress: float, step: int) -> float:
        """Returns the multiplier of the learning rates: a warm-up of 40 steps, constant, linear decay from 65 %."""
        return min((step + 1) / 40, 1.0, (1.0 - progress) / 0.35)

    def save(self, output: Path) -> None:
        """Writes the checkpoint."""
        save(self.model, self.processor, output)
