"""Tries the pretrained model on what it was not trained on: `python -m benchmarks.unseen DOCUMENTS`.

DOCUMENTS is a folder with unpacked Debian packages (`apt-get download`, `dpkg -x`): debian-policy, debian-reference-en,
developers-reference, maint-guide, debmake-doc and debian-faq. Each part is stored as soon as it is measured, and a
command that was stopped measures only what is missing. `benchmarks.unseen_tables` writes what
docs/pretrained.md shows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.controls import COMMITTED, FOLDERS, NAME, curve_table
from benchmarks.unseen_inputs import (
    CHAT,
    DPI,
    INSTRUCTIONS,
    NEW_TOKENS,
    SHOWN,
    WIDTH,
    at,
    content,
    crop,
    docstrings,
    faq,
    letters,
    sequences,
    shared,
    spread_pages,
)
from benchmarks.unseen_tables import STORED, tables
from sparsemm.assemble.updates import read_pin
from sparsemm.datasets.synthetic import CELL_HEIGHT, PageStyle, draw_record, page_text
from sparsemm.errors import SparseMMError
from sparsemm.evaluate.answers import Variant, answer, make_batch
from sparsemm.evaluate.tasks.functions import word_accuracy
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.files import sha256_file, write_json
from sparsemm.policies import make_policy_from
from sparsemm.profiling.clock import heading
from sparsemm.prompts import chat_prompt
from sparsemm.statistics import bootstrap_means, difference, estimate, interval
from sparsemm.training.batches import READ_PROMPT
from sparsemm.training.card import STYLES, answers, loaded
from sparsemm.training.parts import redrawn
from sparsemm.training.prose import LENGTH, clean, plain_characters, read_prose
from sparsemm.training.tuning import LITTLE_PROSE

UPDATES = Path(__file__).parents[1] / "data" / "checkpoints" / NAME
RESAMPLES, SEED = 2000, 0
PDFS = ("policy.pdf", "debian-reference.en.pdf", "developers-reference.pdf", "maint-guide.en.pdf", "debmake-doc.en.pdf")
TEXTS = ("policy.txt", "developers-reference.txt", "maint-guide.en.txt")
SHARES = (12 / 110, 24 / 110, 48 / 110)  # of the prompt: the budgets of docs/results.md
METHODS = ("sparsemm", "snapkv", "sparsemm+blend-echo")
WINDOW = 4
SIZES = {"medium": PageStyle(4, 18, (6, 12)), "long": PageStyle(8, 30, (6, 12))}
Part = dict[str, Any]


def mean(values: Sequence[float]) -> list[float]:
    """Returns mean and 95 % interval of values per page."""
    result = estimate(np.array(values, dtype=np.float64), RESAMPLES, SEED)
    return [round(x, 4) for x in (result.value, result.low, result.high)]


def minus(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Returns mean and 95 % interval of the paired difference."""
    result = difference(np.array(values, dtype=np.float64), np.array(others, dtype=np.float64), RESAMPLES, SEED)
    return [round(x, 4) for x in (result.value, result.low, result.high)]


def real_pages(model: Any, processor: Any, documents: Path, pages: int) -> Part:
    """Reads pages of real PDF files, and pages of our own by the same code, shown in the ways of `SHOWN`."""
    whole = [page for name in PDFS for page in spread_pages(at(documents, name), pages // len(PDFS))]
    parts = [crop(page) for page in whole]
    drawn = [redrawn((e.text for e in part.entries), i) for i, part in enumerate(parts)]
    plain = [redrawn(letters(page_text(part)).split(), i) for i, part in enumerate(parts)]
    own = [draw_record("evaluation", 2, i, STYLES["two columns"]) for i in range(pages)]
    own_drawn = [redrawn((e.text for e in page.entries), i) for i, page in enumerate(own)]
    kinds = dict(zip(SHOWN, (whole, parts, drawn, plain, own, own_drawn), strict=True))
    result: Part = {"documents": {name: sha256_file(at(documents, name)) for name in PDFS}, "dpi": DPI}
    for kind, records in kinds.items():
        texts = answers(model, processor, records, [READ_PROMPT] * len(records), 12 if kind == "whole page" else 64)
        wanted = [page_text(record) for record in records]
        pairs = list(zip(texts, wanted, strict=True))
        result[kind] = {
            "n": len(records),
            "words": round(float(np.mean([len(text.split()) for text in wanted])), 1),
            "word_accuracy": mean([word_accuracy(text, want) for text, want in pairs]),
            "letters_alone": mean([word_accuracy(letters(text), letters(want)) for text, want in pairs]),
            "examples": [{"page": want[:120], "answer": text[:120]} for text, want in pairs[:3]],
        }
    return result


def instructions(model: Any, processor: Any, documents: Path, pages: int) -> Part:
    """Reads the same held-out pages with our instruction and with `INSTRUCTIONS`."""
    records = [draw_record("evaluation", 2, i, style) for style in STYLES.values() for i in range(pages)]

    asked = [(prompt, record) for prompt in (READ_PROMPT, *INSTRUCTIONS) for record in records]
    texts = answers(model, processor, [record for _, record in asked], [prompt for prompt, _ in asked])
    each: dict[str, list[float]] = {}
    for (prompt, record), text in zip(asked, texts, strict=True):
        each.setdefault(prompt, []).append(word_accuracy(text, page_text(record)))
    ours = each.pop(READ_PROMPT)
    values = np.array(list(each.values()))
    rng = np.random.default_rng(SEED)
    rows, columns = (rng.integers(0, size, (RESAMPLES, size)) for size in values.shape)
    both = np.array([values[row][:, column].mean() for row, column in zip(rows, columns, strict=True)])
    return {
        "pages": len(records),
        "ours": {READ_PROMPT: mean(ours)},
        "others": [round(float(x), 4) for x in (values.mean(), *interval(both))],  # pages and instructions resampled
        "others_minus_ours": minus(values.mean(axis=0).tolist(), ours),  # pages resampled
        "each": {prompt: mean(row) for prompt, row in each.items()},
    }


def nats(model: Any, ids: list[int], first: int, tokenizer: Any) -> tuple[float, int]:
    """Returns the summed cross-entropy of the tokens from `first` on, and the number of their characters."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], dtype=torch.int64, device="cpu"), use_cache=False).logits[0]
    targets = torch.tensor(ids[first:], dtype=torch.int64, device="cpu")
    loss = torch.nn.functional.cross_entropy(logits[first - 1 : -1].float(), targets, reduction="sum")
    return float(loss), len(tokenizer.decode(ids[first:]))


def compared(model: Any, base: Any, tokenizer: Any, texts: Sequence[tuple[list[int], int]]) -> Part:
    """Returns nats per character of texts (ids, first predicted) with both models, and the difference per text."""
    after, before = ([nats(one, *text, tokenizer) for text in texts] for one in (model, base))
    rates = [np.array([loss / size for loss, size in values]) for values in (after, before)]
    drawn = bootstrap_means(np.stack([*rates, rates[0] - rates[1]]), RESAMPLES, SEED)
    names = ("after", "before", "after minus before")
    values = (*rates, rates[0] - rates[1])
    ends = [[round(float(x), 4) for x in (v.mean(), *interval(d))] for v, d in zip(values, drawn, strict=True)]
    return {"n": len(texts)} | dict(zip(names, ends, strict=True))


def chat(model: Any, base: Any, processor: Any, documents: Path, count: int) -> Part:
    """Compares tuned and untouched model on questions without an image: loss of reference answers, greedy answers."""
    tokenizer = processor.tokenizer
    known = dict.fromkeys(faq(content(at(documents, "debian-faq.en.txt")).decode()))
    pairs = [list(known)[i] for i in np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)]
    texts, asked = [], [*CHAT, *(question for question, _ in pairs)]
    for question, reply in pairs:
        prompt = tokenizer(chat_prompt(processor, [], question), add_special_tokens=False).input_ids
        texts.append((prompt + tokenizer(reply, add_special_tokens=False).input_ids[:128], len(prompt)))
    replies: dict[str, list[list[int]]] = {}
    for name, one in (("after", model), ("before", base)):
        replies[name] = []
        for question in asked:
            inputs = tokenizer(chat_prompt(processor, [], question), add_special_tokens=False, return_tensors="pt")
            ids = one.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=2,
            )
            replies[name].append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    same = [
        sum(a == b for a, b in zip(one, other, strict=False)) / max(len(one), len(other))
        for one, other in zip(replies["after"], replies["before"], strict=True)
    ]
    return {
        "loss": compared(model, base, tokenizer, texts),
        "questions": len(asked),
        "same_tokens": mean(same),
        "same_answers": mean([float(share == 1.0) for share in same]),
        "answers": {
            question: {name: tokenizer.decode(replies[name][i]) for name in replies} for i, question in enumerate(asked)
        },
    }


def prose(model: Any, base: Any, processor: Any, documents: Path, windows: int) -> Part:
    """Compares the loss of both models on prose from packages that no training prose came from.

    `shared` is the share of each text's sequences of `OVERLAP` words that the training prose holds, as this machine has
    it; `same_training_prose` says whether that is what the checkpoint was trained on, token for token.
    """
    tokenizer = processor.tokenizer
    characters = plain_characters(tokenizer)
    train = read_prose([folder for folder in FOLDERS if folder.is_dir()], tokenizer, *LITTLE_PROSE)
    card = json.loads((UPDATES / "card.json").read_text(encoding="utf-8"))
    seen = set(sequences(tokenizer.decode(train.train.tolist())))
    sources = {name: content(at(documents, name)).decode(errors="ignore") for name in TEXTS}
    sources["docstrings of Python's standard library"] = docstrings()
    result: Part = {"same_training_prose": train.source["tokens_sha256"] == card["prose"]["tokens_sha256"]}
    for name, text in sources.items():
        paragraphs = [" ".join(p.split()) for block in re.split(r"\n\s*\n", text) for p in clean(block, characters)]
        kept = "\n\n".join(dict.fromkeys(p for p in paragraphs if len(p) > 80))
        ids = tokenizer(kept, add_special_tokens=False).input_ids
        starts = np.linspace(0, len(ids) - LENGTH, windows).astype(int)
        part = compared(model, base, tokenizer, [(ids[start : start + LENGTH], 1) for start in starts])
        result[name] = {"shared": round(shared(kept, seen), 4)} | part
    return result


def with_budgets(
    model: Any, processor: Any, scores: Path, task: PageTask, methods: Sequence[str], new_tokens: int
) -> Part:
    """Asks about pages whose prompts are equally long, with the full cache and with methods at `SHARES`."""
    questions = task.questions
    batch = make_batch(processor, questions, range(len(questions)))
    tokens = batch.inputs["input_ids"].shape[1]
    budgets = [round(share * tokens) for share in SHARES]
    options = {"window": WINDOW, "rho": 0.1, "mode": "exact", "pooling_kernel": 5, "seed": SEED}
    table = torch.from_numpy(curve_table(scores).scores)
    chosen = {"full": make_policy_from("full", None, table, options)} | {
        f"{method} {budget}": make_policy_from(method, budget, table, options)
        for method in methods
        for budget in budgets
    }
    replies = answer(model, batch, {name: Variant(policy) for name, policy in chosen.items()}, new_tokens)
    texts = {
        name: [processor.tokenizer.decode(row, skip_special_tokens=True) for row in reply.tokens]
        for name, reply in replies.items()
    }
    values = {name: [one.value for one in task.score(text)] for name, text in texts.items()}
    return {
        "n": len(questions),
        "prompt_tokens": tokens,
        "budgets": budgets,
        "accuracy": {name: mean(row) for name, row in values.items()},
        "examples": [{"wanted": q.answer, "answer": texts["full"][i]} for i, q in enumerate(questions[:3])],
    }


def long_pages(model: Any, processor: Any, documents: Path, pages: int) -> Part:
    """Asks about and reads pages of more paper than in training, with as much text; questions also with less cache."""
    result: Part = {"window": WINDOW, "shares": [round(share, 4) for share in SHARES]}
    before = model.config.image_grid_pinpoints, processor.image_processor.image_grid_pinpoints
    for size, style in SIZES.items():
        tiles = [[style.rows * CELL_HEIGHT, style.columns * WIDTH // 2]]
        model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = tiles
        records = [draw_record("evaluation", 3, i, style) for i in range(pages)]
        for name, methods, new_tokens in (("qa", METHODS, 8), ("read", (), 96)):
            task = PageTask(name, records, READ_PROMPT, SEED)
            result[f"{size}, {name}"] = with_budgets(model, processor, COMMITTED, task, methods, new_tokens)
    model.config.image_grid_pinpoints, processor.image_processor.image_grid_pinpoints = before
    return result


PARTS: dict[str, tuple[Callable[..., Part], int]] = {  # name -> what measures it, and how many samples it takes
    "real_pages": (real_pages, 25),
    "chat": (chat, 10),
    "prose": (prose, 6),
    "instructions": (instructions, 3),
    "long_pages": (long_pages, 6),
}
TEXT_ONLY = ("chat", "prose")


def measure(
    documents: Path,
    names: Iterable[str],
    stored: Path = STORED,
    counts: int | None = None,
    updates: Path = UPDATES,
) -> dict[str, Any]:
    """Measures parts that `stored` does not have, writes it after each of them, and returns all.

    Args:
        documents: folder with the unpacked packages.
        names: keys of `PARTS`.
        stored: file of the results.
        counts: samples of every part; None for those of `PARTS`.
        updates: folder of what was trained.

    Raises:
        DataError: if a document is missing.
        ModelError: if the checkpoint cannot be assembled.
    """
    results = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    missing = [name for name in names if name not in results]
    if not missing:
        return results
    with loaded(updates) as (model, processor):
        results = heading("unseen", model.device, model=updates.name) | results
        base = read_pin(updates).base().model() if set(missing) & set(TEXT_ONLY) else None
        for name in missing:
            part, count = PARTS[name]
            models = (model, base) if name in TEXT_ONLY else (model,)
            results[name] = part(*models, processor, documents, count if counts is None else counts)
            write_json(stored, results)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measures what is missing and prints the tables. Returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, metavar="DOCUMENTS", help="folder with the unpacked packages")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure now; all")
    parser.add_argument(
        "--updates", type=Path, default=UPDATES, help="folder of what was trained, of another checkpoint"
    )
    parser.add_argument("--stored", type=Path, default=STORED, help="file of the results")
    args = parser.parse_args(arguments)
    try:
        measure(args.documents, args.parts, args.stored, updates=args.updates)
    except SparseMMError as error:
        print(f"unseen: {error}", file=sys.stderr)
        return 1
    print("\n".join(tables(args.stored).values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
