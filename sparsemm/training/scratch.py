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


def _character_loss(probes: Probes, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns the cross-entropy of the character read-out, with weights 0.7 for characters and 0.3 for blanks."""
    logits = probes.characters(features.float()).unflatten(-1, (2, -1)).flatten(0, 2)
    targets = batch.characters.flatten()
    each = F.cross_entropy(logits, targets, reduction="none")
    written = targets != 0
    return 0.7 * each[written].mean() + 0.3 * each[~written].mean()


def vision_losses(model: Any, probes: Probes, batch: Batch, qwen: bool) -> dict[str, torch.Tensor]:
    """Returns the character loss of the vision tower and its projector, without the language model."""
    inner, pixels = model.model, batch.inputs["pixel_values"]
    if qwen:
        with captured(model) as seen:
            inner.visual(pixels, grid_thw=batch.inputs["image_grid_thw"])
        features = seen["features"]
    else:
        states = inner.vision_tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
        features = inner.multi_modal_projector(states[model.config.vision_feature_layer][:, 1:])
    return {"characters": _character_loss(probes, _grid_features(features, batch, qwen), batch)}


def losses(model: Any, probes: Probes, batch: Batch, image_id: int, qwen: bool) -> dict[str, torch.Tensor]:
    """Returns the cross-entropies of the answers and of all probes, and the answers' token accuracy (scalars)."""
    with captured(model) as seen:
        output = model(**batch.inputs, use_cache=False, output_attentions=model_penalised(model))
    logits = output.logits[:, :-1]
    targets = batch.labels[:, 1:]
    in_answer = targets != IGNORE
    answer_logits, answer_tokens = logits[in_answer].float(), targets[in_answer]
    characters = _character_loss(probes, _grid_features(seen["features"], batch, qwen), batch)
    pointed = batch.pointers[:, 1:] != IGNORE
    pointers = probes.pointers(seen["pointers"][:, :-1][pointed].float())
    lines = probes.lines(_grid_hidden(seen["lines"], batch, image_id, qwen).float())
    visual = batch.inputs["input_ids"] == image_id
    penalty = (
        {"visual_mass": visual_mass(output.attentions, visual, batch.labels != IGNORE)} if output.attentions else {}
    )
    return penalty | {
        "answer": F.cross_entropy(answer_logits, answer_tokens),
        "characters": characters,
        "lines": F.cross_entropy(lines.flatten(0, 1), batch.lines.flatten(), ignore_index=IGNORE),
        "pointers": F.cross_entropy(pointers, batch.pointers[:, 1:][pointed]),
        "accuracy": (answer_logits.argmax(-1) == answer_tokens).float().mean().detach(),
    }


def model_penalised(model: Any) -> bool:
    """Tells whether the text model returns its attention, as only its eager implementation does."""
    return bool(model.config.get_text_config()._attn_implementation == "eager")


def visual_mass(attentions: tuple[torch.Tensor, ...], visual: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Returns the mean over layers and heads of the square root of the attention from answer rows to visual tokens.

    With the square root, one head with much visual attention costs less than many with a little, so that visual
    attention concentrates in few heads.

    Args:
        attentions: attention weights (B, Hq, S, S) of each layer.
        visual: (B, S) bool, true for visual tokens.
        answer: (B, S) bool, true for answer tokens, each of which is predicted by the row before it.

    Returns:
        a scalar in 0..1.
    """
    rows = torch.nn.functional.pad(answer[:, 1:], (0, 1)).to(attentions[0].dtype)
    mass = torch.stack([(a * visual[:, None, None]).sum(-1) for a in attentions])  # (L, B, Hq, S)
    mean = (mass * rows[:, None]).sum(dim=(1, 3)) / rows.sum()
    return (mean + 1e-6).sqrt().mean()


# Stages of the curriculum: page styles used in turn, and the running accuracies (reading, answering) that end a stage.
STAGES: tuple[tuple[tuple[PageStyle, ...], float, float], ...] = (
    ((PageStyle(1, 6, (1, 2)),), 0.93, 0.0),
    ((PageStyle(1, 6, (2, 4)),), 0.93, 0.0),
    ((PageStyle(1, 6, (3, 6)),), 0.93, 0.85),
    ((PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12))), 2.0, 2.0),
)


def page_plan(alone: int, number: int, stage: int) -> tuple[PageStyle, bool]:
    """Returns the style of page batch `number` in a stage, and whether it is read (else asked about).

    The first `alone` batches train the vision tower alone, on full pages.
    """
    styles = STAGES[-2 if number < alone else stage][0]
    return styles[number // 2 % len(styles)], number % 5 < 3 if stage < 2 else number % 2 == 0


def rate_at(progress: float, step: int) -> float:
    """Returns the multiplier of the learning rate: 40 steps of warm-up, constant, linear to zero over the last 35 %."""
    return min((step + 1) / 40, 1.0, (1.0 - progress) / 0.35)


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
    """The recipe of the small checkpoints: a model, its trained parameters, its pages and its losses.

    `Tuning` is another recipe with the same interface for the training loop.

    Attributes:
        model, processor: model to train, on its device and in training mode, and its processor.
        optimizers: optimizers of the trained parameters.
        weights: weights of the losses by name; other figures are only printed.
        stages: stages of the curriculum (see `STAGES`).
        prose_from: the first step that may be on prose.

    Args:
        name, seed: architecture to build, and the seed of its weights.
        device: device to train on.
        initial: a trained checkpoint to start from, without the steps of the vision tower alone.
        sparsity: weight of `visual_mass` in the loss; if it is not 0, the probes are not trained.
    """

    stages = STAGES
    prose_from = 0

    def __init__(self, name: str, seed: int, device: str, initial: Path | None = None, sparsity: float = 0.0) -> None:
        self.model, self.processor = build(name, seed)
        if initial is not None:
            kind = type(self.model)
            with transformers_errors(str(initial), "name the folder of a trained checkpoint"):
                self.model = whole_model(kind, initial, str(initial), dtype=torch.float32, local_files_only=True)
        if sparsity:
            self.model.set_attn_implementation({"text_config": "eager"})
        self.weights = {"answer": 1.0, "visual_mass": sparsity} if sparsity else WEIGHTS
        self.model.to(device).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.probes = Probes(self.model.config.text_config.hidden_size).to(device)
        self.alone = 0 if initial else VISION_STEPS
        self.optimizers = optimizers(self.model, self.probes)
        maker = BatchMaker(self.processor, seed)
        self.image_id, self.qwen = maker.image_id, maker.qwen

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trained parameters by name."""
        modules = {"model": self.model, "probes": self.probes}
        return {f"{name}/{key}": value for name, module in modules.items() for key, value in module.named_parameters()}

    def plan(self, number: int, stage: int) -> tuple[PageStyle, bool]:
        """Returns the style of page batch `number` in a stage, and whether it is read (else asked about)."""
        return page_plan(self.alone, number, stage)

    def losses(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """Returns the losses of page batch `number`, and figures to print."""
        if number < self.alone:
            return vision_losses(self.model, self.probes, batch, self.qwen)
        return losses(self.model, self.probes, batch, self.image_id, self.qwen)

    def prose_loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Returns the loss of (B, S) windows of prose."""
        return prose_loss(self.model, windows)

    def rate_at(self, progress: float, step: int) -> float:
        """Returns the multiplier of the learning rates."""
        return rate_at(progress, step)

    def save(self, output: Path) -> None:
        """Writes the checkpoint."""
        save(self.model, self.processor, output)
