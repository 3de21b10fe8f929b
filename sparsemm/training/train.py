"""Trains a checkpoint: `python -m sparsemm.training.train tiny-qwen2-vl --output FOLDER`.

The tiny- and small- ones are trained from scratch. `smollm2-llava-next` and `smollm2-smolvlm` start from a pretrained
language model; their training writes the updates that `sparsemm assemble` turns into a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from sparsemm.training.architectures import base_name, build_tokenizer
from sparsemm.training.batches import BatchMaker, PageFeed
from sparsemm.training.card import write_card
from sparsemm.training.parts import Parts
from sparsemm.training.precision import EXACT, PRECISIONS, autocast
from sparsemm.training.prose import FOLDERS, Prose, read_prose
from sparsemm.training.scratch import Scratch
from sparsemm.training.state import load_state, save_state
from sparsemm.training.tuning import ALIGNMENT_STEPS, LITTLE_PROSE, RANK, Tuning, base_of, tower_of

SAVE_STEPS = 200  # steps between saved states


def pages_before(step: int, share: float, first: int = 0) -> int:
    """Counts the steps on pages among the first `step`; from step `first` on, a share of them is on prose instead.

    In the same way it counts the pages that are drawn among all batches of pages; the share is that of real ones.
    """
    return step - int(max(step - first, 0) * share)


def learnt(stage: tuple[Any, float, float], running: dict[str, float]) -> bool:
    """Tells whether the running accuracies reach a stage's goals; the goal of a stage without questions is 0 there."""
    _, read_goal, ask_goal = stage
    return running.get("read_accuracy", 0.0) > read_goal and running.get("ask_accuracy", 0.0) >= ask_goal


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
    prose: Prose | None = None,
    prose_share: float = 0.0,
    parts: Parts | None = None,
    parts_share: float = 0.0,
    workers: int = 0,
    precision: str = "fp32",
    save_every: int = SAVE_STEPS,
    **tuned: Any,
) -> dict[str, Any]:
    """Trains `name` for `steps` steps and writes it to `output`: a checkpoint in fp16, or the updates of one.

    A training that was stopped resumes from its last saved state (beside `output`) if it has the same arguments.

    Args:
        name: name of the architecture.
        output: folder to write.
        steps, batch_size, seed, device: steps of the run, pages per step, seed and device.
        every: steps between lines of progress.
        initial: a trained checkpoint to start from, in the curriculum's last stage.
        rate: multiplier of the learning rates.
        prose: text for steps on prose; None trains on pages alone.
        prose_share: share of the steps on prose.
        parts, parts_share: parts of real pages, and their share of the steps on pages; None draws all pages.
        workers: processes that draw pages ahead; 0 draws them in this process.
        precision: one of `PRECISIONS`; the weights are fp32 in both.

    Returns:
        the card's entry for the run: steps, seconds, batch size, seed, device, precision, last losses.
    """
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32
    pin = base_of(name)
    recipe = Tuning(name, seed, device, precision, initial, **tuned) if pin else Scratch(name, seed, device, initial)
    if precision == "bf16" and not cuda:
        recipe.model.set_attn_implementation(EXACT)
    parameters = recipe.parameters()
    base = [[group["lr"] for group in o.param_groups] for o in recipe.optimizers]
    state_path = output.with_name(f".{output.name}.state.safetensors")
    stage = len(recipe.stages) - 1 if initial else 0
    start, spent = 0, 0.0
    if state_path.exists():
        meta = load_state(state_path, parameters, recipe.optimizers)
        start, spent, stage = (meta[k] for k in ("step", "seconds", "stage"))
        print(f"{name}: resumed at step {start}", flush=True)
    maker = BatchMaker(recipe.processor, seed)
    maker.rng.seed(f"batches/{seed}/{start}")
    feed = PageFeed(maker, batch_size, recipe.plan, workers, pin=cuda)
    share = 0.0 if prose is None else prose_share
    real = 0.0 if parts is None else parts_share
    running: dict[str, float] = {}
    began = time.monotonic()
    for step in range(start, steps):
        progress = step / steps
        number = pages_before(step, share, recipe.prose_from)  # index of the next batch of pages
        if prose is not None and pages_before(step + 1, share, recipe.prose_from) == number:
            kind = "prose"
            with autocast(device, precision):
                losses = {"answer": recipe.prose_loss(prose.batch(batch_size, seed, step).to(device))}
        else:
            drawn = pages_before(number, real)  # index of the next batch of pages that are drawn
            if parts is not None and pages_before(number + 1, real) == drawn:
                kind, batch = "part", parts.batch(maker, batch_size, number - drawn)
            else:
                kind, batch = "read" if recipe.plan(drawn, stage)[1] else "ask", feed.next(drawn, stage)
            batch = batch.to(device)
            with autocast(device, precision):
                losses = recipe.losses(batch, number)
        weighted = [recipe.weights[key] * value for key, value in losses.items() if key in recipe.weights]
        torch.stack(weighted).sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer, rates in zip(recipe.optimizers, base, strict=True):
            for group, base_rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base_rate * rate * recipe.rate_at(progress, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        values = torch.stack([value.detach() for value in losses.values()]).tolist()  # a single transfer
        for key, value in zip(losses, values, strict=True):
            label = f"{kind}_{key}" if key in ("answer", "accuracy") else key
            running[label] = 0.8 * running.get(label, value) + 0.2 * value
        if learnt(recipe.stages[stage], running):
            stage += 1
            running = {}
            print(f"{name} step {step + 1}: stage {stage}", flush=True)
        if (step + 1) % every == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in sorted(running.items()))
            print(f"{name} step {step + 1}/{steps} {spent + time.monotonic() - began:.0f} s {shown}", flush=True)
        if (step + 1) % save_every == 0 and step + 1 < steps:
            seconds = spent + time.monotonic() - began
            meta = {"step": step + 1, "seconds": seconds, "stage": stage}
            save_state(state_path, parameters, recipe.optimizers, meta)
    seconds = spent + time.monotonic() - began
    recipe.save(output)
    state_path.unlink(missing_ok=True)
    last = {k: round(v, 4) for k, v in running.items()}
    run: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "seed": seed, "device": device, "rate": rate}
    run |= {"stage": stage, "precision": precision}
    if prose is not None:
        run["prose_share"] = prose_share
    if parts is not None:
        run["parts"] = parts.source | {"share": parts_share}
    if initial is not None:
        run["after"] = json.loads((initial / "card.json").read_text(encoding="utf-8"))["training"]
    return run | {"seconds": round(seconds), "last": last}


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, help="default: 32, on a GPU 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=Path, metavar="FROM", help="trained checkpoint, or updates, to start from")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplier of the learning rates")
    parser.add_argument("--prose", type=Path, action="append", metavar="FOLDER", help="plain text; may be repeated")
    parser.add_argument(
        "--prose-share", type=float, help="share of the steps; default: 0.4 for small-, 0 for tiny-, else 0.1"
    )
    parser.add_argument("--records", type=Path, help="real pages at 84 dpi: records that `sparsemm download` wrote")
    parser.add_argument("--records-share", type=float, default=0.5, help="their share of the steps on pages")
    parser.add_argument("--workers", type=int, help="processes that draw pages; default: 0, on a GPU at most 6")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the matrix products")
    parser.add_argument("--save-every", type=int, default=SAVE_STEPS, help="steps between two saved states")
    tuned = parser.add_argument_group("options for a pretrained language model")
    tuned.add_argument("--tower", type=Path, help="checkpoint with the initial vision tower; default: a tiny one")
    tuned.add_argument("--rank", type=int, default=RANK, help="rank of the updates of its linear layers")
    tuned.add_argument("--alignment-steps", type=int, default=ALIGNMENT_STEPS, help="first steps, with it frozen")
    args = parser.parse_args(arguments)
    pin = base_of(args.name)
    cuda = torch.device(args.device).type == "cuda"
    share = args.prose_share
    if share is None:
        share = 0.1 if pin else 0.4 if args.name.startswith("small-") else 0.0
    if not 0.0 <= share < 1.0:
        parser.error("--prose-share must be at least 0 and below 1")
    if not 0.0 < args.records_share < 1.0:
        parser.error("--records-share must be above 0 and below 1")
    if args.records and not pin:
        parser.error(
            "--records is for a pretrained language model: what the others learn is known of drawn pages alone"
        )
    if args.prose and not share:
        parser.error("--prose needs a --prose-share")
    prose = None
    if share:
        folders = args.prose or [folder for folder in FOLDERS if folder.is_dir()]
        tokenizer = pin.base().tokenizer() if pin else build_tokenizer(base_name(args.name))
        prose = read_prose(folders, tokenizer, *(LITTLE_PROSE if pin else ()))
        print(f"{args.name}: {prose.source['characters']} characters of prose", flush=True)
    options: dict[str, Any] = {}
    if pin:
        options = {"rank": args.rank, "alignment_steps": args.alignment_steps}
        options["tower"] = args.tower or tower_of(args.name)
    run = train(
        args.name,
        args.output,
        steps=args.steps,
        batch_size=args.batch_size or (128 if cuda else 32),
        seed=args.seed,
        device=args.device,
        initial=args.start,
        rate=args.rate,
        prose=prose,
        prose_share=share,
        parts=args.records and Parts(args.records, args.seed),
        parts_share=args.records_share,
        workers=(min(6, (os.cpu_count() or 1) - 1) if cuda else 0) if args.workers is None else args.workers,
        precision=args.precision,
        save_every=args.save_every,
        **options,
    )
    print(json.dumps(write_card(args.output, run, prose)["held_out"]))


if __name__ == "__main__":
    main()
