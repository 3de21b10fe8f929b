"""Train a small checkpoint from scratch: `python -m sparsemm.training.train tiny-qwen2-vl --output FOLDER`."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsemm.datasets.synthetic import ANCHORS, PageStyle
from sparsemm.files import write_json
from sparsemm.models import transformers_errors, whole_model
from sparsemm.training.architectures import base_name, build, build_tokenizer
from sparsemm.training.batches import CHARACTERS, IGNORE, Batch, BatchMaker, PageFeed
from sparsemm.training.card import write_card
from sparsemm.training.precision import EXACT, PRECISIONS, autocast
from sparsemm.training.prose import FOLDERS, Prose, prose_loss, read_prose
from sparsemm.training.state import load_state, save_state

LINE_LAYER = 2  # the decoder layer whose output has to know on which line a visual token lies
POINTER_LAYER = 4  # the decoder layer whose output has to know where the next answer token stands on the page
VISION_STEPS = 400  # steps on pages in which the vision tower alone learns its letters
MOST_VISUAL = 72  # high-resolution visual tokens of the largest page
SAVE_STEPS = 200  # steps between two saved states
WEIGHTS = {"answer": 1.0, "characters": 0.3, "lines": 0.3, "pointers": 0.3}


class Probes(nn.Module):
    """Linear read-outs that speed learning up and are thrown away afterwards.

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
    """Collect visual features and the probed layers' hidden states of the forwards inside the block."""
    seen: dict[str, torch.Tensor] = {}
    inner = model.model
    vision = inner.multi_modal_projector if hasattr(inner, "multi_modal_projector") else inner.visual.merger

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [
        vision.register_forward_hook(keep("features")),
        inner.language_model.layers[LINE_LAYER - 1].register_forward_hook(keep("lines")),
        inner.language_model.layers[POINTER_LAYER - 1].register_forward_hook(keep("pointers")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _grid_features(features: torch.Tensor, batch: Batch, qwen: bool) -> torch.Tensor:
    """Visual features of the high-resolution grid in raster order: (B, N, hidden)."""
    size, count = batch.lines.shape
    if qwen:
        return features.view(size, count, -1)
    tiles = features.view(size, -1, 6, 6, features.shape[-1])[:, 1:]  # without the thumbnail
    return tiles.permute(0, 2, 1, 3, 4).reshape(size, count, -1)  # pages are one tile high


def _grid_hidden(hidden: torch.Tensor, batch: Batch, image_id: int, qwen: bool) -> torch.Tensor:
    """Hidden states of the high-resolution grid's tokens in raster order, newlines left out: (B, N, hidden)."""
    size, count = batch.lines.shape
    visual = hidden[batch.inputs["input_ids"] == image_id].view(size, -1, hidden.shape[-1])
    if qwen:
        return visual
    return visual[:, 36:].reshape(size, 6, count // 6 + 1, -1)[:, :, :-1].reshape(size, count, -1)


def _character_loss(probes: Probes, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the character read-out; written and blank halves of tokens weigh the same."""
    logits = probes.characters(features.float()).unflatten(-1, (2, -1)).flatten(0, 2)
    targets = batch.characters.flatten()
    each = F.cross_entropy(logits, targets, reduction="none")
    written = targets != 0
    return 0.7 * each[written].mean() + 0.3 * each[~written].mean()


def vision_losses(model: Any, probes: Probes, batch: Batch, qwen: bool) -> dict[str, torch.Tensor]:
    """The character loss alone, through the vision tower and its projector, without the language model."""
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
    """Cross-entropies of the answers and of both probes, and the answers' token accuracy (scalars)."""
    with captured(model) as seen:
        output = model(**batch.inputs, use_cache=False, output_attentions=model_penalised(model))
    logits = output.logits[:, :-1]
    targets = batch.labels[:, 1:]
    chosen = targets != IGNORE
    picked, wanted = logits[chosen].float(), targets[chosen]
    characters = _character_loss(probes, _grid_features(seen["features"], batch, qwen), batch)
    pointed = batch.pointers[:, 1:] != IGNORE
    pointers = probes.pointers(seen["pointers"][:, :-1][pointed].float())
    lines = probes.lines(_grid_hidden(seen["lines"], batch, image_id, qwen).float())
    visual = batch.inputs["input_ids"] == image_id
    penalty = (
        {"visual_mass": visual_mass(output.attentions, visual, batch.labels != IGNORE)} if output.attentions else {}
    )
    return penalty | {
        "answer": F.cross_entropy(picked, wanted),
        "characters": characters,
        "lines": F.cross_entropy(lines.flatten(0, 1), batch.lines.flatten(), ignore_index=IGNORE),
        "pointers": F.cross_entropy(pointers, batch.pointers[:, 1:][pointed]),
        "accuracy": (picked.argmax(-1) == wanted).float().mean().detach(),
    }


def model_penalised(model: Any) -> bool:
    """Whether the text model returns its attention, which only its eager implementation does."""
    return bool(model.config.get_text_config()._attn_implementation == "eager")


def visual_mass(attentions: tuple[torch.Tensor, ...], visual: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Mean over layers and heads of the square root of the attention that answer rows put on visual tokens.

    The square root makes one head that looks cheaper than many that glance, so that looking concentrates in few.

    Args:
        attentions: per layer (B, Hq, S, S).
        visual: (B, S) bool, visual tokens.
        answer: (B, S) bool, answer tokens; the rows before them predict them.

    Returns:
        scalar in 0..1.
    """
    rows = torch.nn.functional.pad(answer[:, 1:], (0, 1)).to(attentions[0].dtype)
    mass = torch.stack([(a * visual[:, None, None]).sum(-1) for a in attentions])  # (L, B, Hq, S)
    mean = (mass * rows[:, None]).sum(dim=(1, 3)) / rows.sum()
    return (mean + 1e-6).sqrt().mean()


# The curriculum: page styles used in turn, and the running accuracies (reading, answering) that end the stage.
STAGES: tuple[tuple[tuple[PageStyle, ...], float, float], ...] = (
    ((PageStyle(1, 6, (1, 2)),), 0.93, 0.0),
    ((PageStyle(1, 6, (2, 4)),), 0.93, 0.0),
    ((PageStyle(1, 6, (3, 6)),), 0.93, 0.85),
    ((PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12))), 2.0, 2.0),
)


def page_plan(alone: int, number: int, stage: int) -> tuple[PageStyle, bool]:
    """Style of page batch `number` in a stage, and whether it is read (else asked about).

    The first `alone` batches are for the vision tower alone, which learns its letters from full pages.
    """
    styles = STAGES[-2 if number < alone else stage][0]
    return styles[number // 2 % len(styles)], number % 5 < 3 if stage < 2 else number % 2 == 0


def pages_before(step: int, share: float) -> int:
    """How many of the first `step` steps are on pages when prose has `share` of them, evenly spread."""
    return step - int(step * share)


def rate_at(progress: float, step: int) -> float:
    """Multiplier of the learning rate: 40 steps of warm-up, constant, linear to zero over the last 35 %."""
    return min((step + 1) / 40, 1.0, (1.0 - progress) / 0.35)


def optimizers(model: Any, probes: Probes) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms, convolutions and probes."""
    inside = [
        p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n or ".blocks." in n and p.ndim == 2
    ]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known] + list(probes.parameters())
    return [
        torch.optim.Muon(inside, lr=0.02, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    name: str,
    output: Path,
    *,
    steps: int,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    every: int = 25,
    initial: Path | None = None,
    rate: float = 1.0,
    sparsity: float = 0.0,
    stage: int | None = None,
    prose: Prose | None = None,
    prose_share: float = 0.0,
    workers: int = 0,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Train `name` for `steps` steps and write model and processor to `output` (fp16 safetensors).

    Stopped and started again with the same arguments, it goes on from its last saved state (beside `output`).

    Args:
        name: of the architecture.
        output: folder to write.
        steps, batch_size, seed, device: of the run.
        every: steps between two lines of progress.
        initial: a trained checkpoint to go on from: no warm-up, the curriculum's last stage.
        rate: multiplier of the learning rates.
        sparsity: weight of `visual_mass` in the loss; the probes are left out then.
        stage: of the curriculum, to stay in; None starts with the first (the last after `initial`) and moves on.
        prose: text for the steps that are not on pages; None is for pages alone.
        prose_share: share of the steps that are on prose.
        workers: processes that draw pages ahead; 0 draws them in this one.
        precision: of `PRECISIONS`; the weights are fp32 in both.

    Returns:
        what the card says of the run: steps, seconds, batch size, seed, device, precision, last losses.
    """
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32
    model, processor = build(name, seed)
    if initial is not None:
        with transformers_errors(str(initial), "name the folder of a trained checkpoint"):
            model = whole_model(type(model), initial, str(initial), dtype=torch.float32, local_files_only=True)
    if precision == "bf16" and not cuda:
        model.set_attn_implementation(EXACT)
    if sparsity:
        model.set_attn_implementation({"text_config": "eager"})
    weights = {"answer": 1.0, "visual_mass": sparsity} if sparsity else WEIGHTS
    model.to(device).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probes = Probes(model.config.text_config.hidden_size).to(device)
    maker = BatchMaker(processor, seed)
    optimizer_list = optimizers(model, probes)
    base = [[group["lr"] for group in o.param_groups] for o in optimizer_list]
    state_path = output.with_name(f".{output.name}.state.safetensors")
    stays = stage is not None
    if stage is None:
        stage = len(STAGES) - 1 if initial else 0
    start, spent = 0, 0.0
    if state_path.exists():
        meta = load_state(state_path, {"model": model, "probes": probes}, optimizer_list)
        start, spent, stage = (meta[k] for k in ("step", "seconds", "stage"))
        print(f"{name}: going on at step {start}", flush=True)
    maker.rng.seed(f"batches/{seed}/{start}")
    plan = partial(page_plan, 0 if initial else VISION_STEPS)
    feed = PageFeed(maker, batch_size, plan, workers, pin=cuda)
    share = 0.0 if prose is None else prose_share
    running: dict[str, float] = {}
    began = time.monotonic()
    for step in range(start, steps):
        progress = step / steps
        number = pages_before(step, share)  # of the next batch of pages
        if prose is not None and pages_before(step + 1, share) == number:
            kind = "prose"
            with autocast(device, precision):
                parts = {"answer": prose_loss(model, prose.batch(batch_size, seed, step).to(device))}
        else:
            kind = "read" if plan(number, stage)[1] else "ask"
            batch = feed.next(number, stage).to(device)
            with autocast(device, precision):
                if number < VISION_STEPS and initial is None:
                    parts = vision_losses(model, probes, batch, maker.qwen)
                else:
                    parts = losses(model, probes, batch, maker.image_id, maker.qwen)
        sum(
            (weights[key] * value for key, value in parts.items() if key in weights),
            torch.zeros((), dtype=torch.float32, device=device),
        ).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *probes.parameters()], 1.0)
        for optimizer, rates in zip(optimizer_list, base, strict=True):
            for group, base_rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base_rate * rate * rate_at(progress, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        values = torch.stack([value.detach() for value in parts.values()]).tolist()  # one wait for the device
        for key, value in zip(parts, values, strict=True):
            label = f"{kind}_{key}" if key in ("answer", "accuracy") else key
            running[label] = 0.8 * running.get(label, value) + 0.2 * value
        _, read_goal, ask_goal = STAGES[stage]
        if not stays and running.get("read_accuracy", 0.0) > read_goal and running.get("ask_accuracy", 0.0) > ask_goal:
            stage += 1
            running = {}
            print(f"{name} step {step + 1}: stage {stage}", flush=True)
        if (step + 1) % every == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in sorted(running.items()))
            print(f"{name} step {step + 1}/{steps} {spent + time.monotonic() - began:.0f} s {shown}", flush=True)
        if (step + 1) % SAVE_STEPS == 0 and step + 1 < steps:
            seconds = spent + time.monotonic() - began
            meta = {"step": step + 1, "seconds": seconds, "stage": stage}
            save_state(state_path, {"model": model, "probes": probes}, optimizer_list, meta)
    seconds = spent + time.monotonic() - began
    save(model, processor, output)
    state_path.unlink(missing_ok=True)
    last = {k: round(v, 4) for k, v in running.items()}
    run: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "rate": rate}
    run |= {"stage": stage, "precision": precision}
    if prose is not None:
        run["prose_share"] = prose_share
    if initial is not None:
        run["sparsity"] = sparsity
        run["after"] = json.loads((initial / "card.json").read_text(encoding="utf-8"))["training"]
    return run | {"seconds": round(seconds), "last": last}


def save(model: Any, processor: Any, output: Path) -> None:
    """Write model and processor so that the Auto classes load them: weights in fp16, to be run in fp32."""
    output.mkdir(parents=True, exist_ok=True)
    model.to("cpu").half().save_pretrained(output)
    processor.save_pretrained(output)
    model.float()
    # save_pretrained writes down the dtype of the weights; transformers takes it for the dtype to run in.
    config = (output / "config.json").read_text(encoding="utf-8")
    write_json(output / "config.json", json.loads(config.replace('"float16"', '"float32"')))


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, help="default: 32, on a GPU 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--initial", type=Path, help="trained checkpoint to go on from")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplier of the learning rates")
    parser.add_argument("--sparsity", type=float, default=0.0, help="weight of the penalty on visual attention")
    parser.add_argument("--stage", type=int, choices=range(len(STAGES)), help="stay in this stage of the curriculum")
    parser.add_argument("--note", default="", help="declares a test model: shown beside it in every table")
    parser.add_argument("--prose", type=Path, action="append", metavar="FOLDER", help="of plain text; may be repeated")
    parser.add_argument("--prose-share", type=float, help="share of the steps; default: 0.4 for small-, 0 for tiny-")
    parser.add_argument("--workers", type=int, help="processes that draw pages; default: 0, on a GPU at most 6")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the matrix products")
    given = parser.parse_args(arguments)
    cuda = torch.device(given.device).type == "cuda"
    share = given.prose_share
    if share is None:
        share = 0.4 if given.name.startswith("small-") else 0.0
    if not 0.0 <= share < 1.0:
        parser.error("--prose-share is at least 0 and below 1")
    if given.prose and not share:
        parser.error("--prose without a --prose-share")
    prose = None
    if share:
        folders = given.prose or [folder for folder in FOLDERS if folder.is_dir()]
        prose = read_prose(folders, build_tokenizer(base_name(given.name)))
        print(f"{given.name}: {prose.source['characters']} characters of prose", flush=True)
    run = train(
        given.name,
        given.output,
        steps=given.steps,
        batch_size=given.batch_size or (128 if cuda else 32),
        seed=given.seed,
        device=given.device,
        initial=given.initial,
        rate=given.rate,
        sparsity=given.sparsity,
        stage=given.stage,
        prose=prose,
        prose_share=share,
        workers=(min(6, (os.cpu_count() or 1) - 1) if cuda else 0) if given.workers is None else given.workers,
        precision=given.precision,
    )
    print(json.dumps(write_card(given.output, run, given.note, prose)["held_out"]))


if __name__ == "__main__":
    main()
