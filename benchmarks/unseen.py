"""Tries the pretrained model on what it was not trained on: `python -m benchmarks.unseen DOCUMENTS`.

DOCUMENTS is a folder with unpacked Debian packages (`apt-get download`, `dpkg -x`): debian-policy, debian-reference-en,
developers-reference, maint-guide, debmake-doc and debian-faq. Each part is stored as soon as it is measured, and a
command that was stopped measures only what is missing. `table` writes what docs/pretrained.md shows.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.controls import COMMITTED, FOLDERS, NAME, curve_table
from sparsemm.assemble.base import Base
from sparsemm.assemble.updates import read_pin
from sparsemm.datasets import pdf
from sparsemm.datasets.records import Entry, Record
from sparsemm.datasets.synthetic import (
    CELL_HEIGHT,
    CELL_WIDTH,
    FONTS,
    LICENCE,
    PageStyle,
    _draw_word,
    draw_record,
    page_text,
)
from sparsemm.errors import DataError, EmptyRecord, SparseMMError
from sparsemm.evaluate.answers import Variant, answer, make_batch
from sparsemm.evaluate.tasks.functions import word_accuracy
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.fetch import open_local
from sparsemm.files import sha256_file, write_json
from sparsemm.policies import make_policy_from
from sparsemm.profiling.clock import heading
from sparsemm.prompts import chat_prompt
from sparsemm.statistics import bootstrap_means, difference, estimate, interval
from sparsemm.training.batches import READ_PROMPT
from sparsemm.training.card import STYLES, answers, loaded
from sparsemm.training.prose import LENGTH, clean, plain_characters, read_prose
from sparsemm.training.tuning import LITTLE_PROSE

ROOT = Path(__file__).parents[1]
UPDATES, STORED = ROOT / "data" / "checkpoints" / NAME, ROOT / "artifacts" / "benchmarks" / f"unseen-{NAME}.json"
RESAMPLES, SEED = 2000, 0
DPI = 84  # draws a leading of 12 points 14 pixels high, as lines of the training pages are
WIDTH, HEIGHT = 168, 84  # pixels of the widest page that the model was trained on
SHOWN = (  # ways of showing a real page
    "whole page",
    "part at training size",
    "its words in our print",
    "the same, lower case without punctuation",
)
WORDS = 100  # least words of a page
BODY = 0.15  # share of a document before the pages that are read: its table of contents is there
PDFS = ("policy.pdf", "debian-reference.en.pdf", "developers-reference.pdf", "maint-guide.en.pdf", "debmake-doc.en.pdf")
TEXTS = ("policy.txt", "developers-reference.txt", "maint-guide.en.txt")
SHARES = (12 / 110, 24 / 110, 48 / 110)  # of the prompt: the budgets of docs/results.md
METHODS = ("sparsemm", "snapkv", "sparsemm+blend-echo")
WINDOW = 4
SIZES = {"medium": PageStyle(4, 18, (6, 12)), "long": PageStyle(8, 30, (6, 12))}
OVERLAP = 8  # words in a row that count as the same text
NEW_TOKENS = 12  # of an answer to a text-only question
INSTRUCTIONS = (
    "What does the page say?",
    "Please read this page to me.",
    "Write down every word you can see.",
    "Transcribe the image.",
    "Give me the text of this picture.",
    "Which words are on the page?",
    "Copy the text from the image.",
    "Read out everything that is printed here.",
    "Can you tell me what is written there?",
    "Type out the contents of this document.",
    "I cannot see the page. What is on it?",
    "OCR this.",
    "List all words of the page in order.",
    "Extract the text.",
    "Repeat what stands on this sheet.",
    "Show me the words of this scan as plain text.",
    "Tell me all the text, from top to bottom.",
    "What text does the picture contain?",
    "Turn this photo of a page into text.",
    "Spell out what you read in the image.",
)
CHAT = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "How do I boil an egg?",
    "Name three colours.",
    "What is two plus three?",
    "Give me a tip for sleeping well.",
    "Who wrote Romeo and Juliet?",
    "What is photosynthesis?",
    "Hello, how are you?",
    "Explain what a computer is to a child.",
)
Part = dict[str, Any]


def at(documents: Path, name: str) -> Path:
    """Returns the file of this name, or with .gz, below a folder; raises DataError if there is none."""
    for path in sorted(documents.rglob(f"{name}*")):
        if path.name in (name, f"{name}.gz") and path.is_file():
            return path
    raise DataError(f"{name} is missing", where=str(documents), hint="unpack the Debian packages that --help names")


def content(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def mean(values: Sequence[float]) -> list[float]:
    """Returns mean and 95 % interval of values per page."""
    result = estimate(np.array(values, dtype=np.float64), RESAMPLES, SEED)
    return [round(x, 4) for x in (result.value, result.low, result.high)]


def minus(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Returns mean and 95 % interval of the paired difference."""
    result = difference(np.array(values, dtype=np.float64), np.array(others, dtype=np.float64), RESAMPLES, SEED)
    return [round(x, 4) for x in (result.value, result.low, result.high)]


def letters(text: str) -> str:
    """Returns a text in lower case without anything but letters, digits and blanks."""
    return " ".join(word for word in (re.sub("[^a-z0-9]", "", w) for w in text.lower().split()) if word)


# Real pages


def crop(page: Record) -> Record:
    """Returns the part of a page, as large as the training pages, that holds most whole words; cut words are erased."""

    def inside(x: float, y: float) -> list[Entry]:
        return [
            e
            for e in page.entries
            if x <= e.box[0] and y <= e.box[1] and e.box[2] <= x + WIDTH and e.box[3] <= y + HEIGHT
        ]

    left, top = max(((int(e.box[0]), int(e.box[1])) for e in page.entries), key=lambda corner: len(inside(*corner)))
    image, entries = Image.new("RGB", (WIDTH, HEIGHT), "white"), []
    for entry in inside(left, top):
        x0, y0, x1, y1 = (round(side) for side in entry.box)
        image.paste(page.image.crop((x0, y0, x1 + 1, y1 + 1)), (x0 - left, y0 - top))
        entries.append(Entry(entry.text, (x0 - left, y0 - top, min(x1 - left, WIDTH), min(y1 - top, HEIGHT)), "word"))
    return Record(page.id, image, tuple(entries), page.source, page.licence)


def redrawn(words: Iterable[str], number: int) -> Record:
    """Returns words as our pages draw them, as many as fit, each at the next even cell of the next line with room."""
    image = Image.new("L", (WIDTH, HEIGHT), 235)
    draw, entries, cells = ImageDraw.Draw(image), [], WIDTH // CELL_WIDTH
    line = cell = 0
    for word in (word for word in words if len(word) <= cells):
        if cell and cell + len(word) > cells:
            line, cell = line + 1, 0
        if line == HEIGHT // CELL_HEIGHT:
            break
        _draw_word(draw, word, cell, line, FONTS[number % len(FONTS)], 10, 30, (0, 0), 1)
        x, y = cell * CELL_WIDTH, line * CELL_HEIGHT
        entries.append(Entry(word, (x, y, x + len(word) * CELL_WIDTH, y + CELL_HEIGHT), "word"))
        cell += (len(word) + 2) // 2 * 2
    return Record(f"redrawn-{number}", image.convert("RGB"), tuple(entries), "redrawn", LICENCE)


def spread_pages(document: Path, count: int) -> list[Record]:
    """Returns `count` pages of a PDF file from all over it, each the first with `WORDS` words after its place."""
    import pypdfium2

    pages: list[Record] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / document.name.removesuffix(".gz")
        path.write_bytes(content(document))
        length = len(pypdfium2.PdfDocument(path))
        places = np.linspace(BODY * length, length, count, endpoint=False).astype(int).tolist()
        with closing(pdf.rows(open_local(str(path), Path(".")), 0, None, DPI)) as rows:
            for index, row in enumerate(rows):
                if isinstance(row, DataError) or len(pages) == count or index < places[len(pages)]:
                    continue
                with suppress(EmptyRecord):
                    page = row.read(str(document.name), "not stated")
                    pages += [page] if len(letters(page_text(page)).split()) >= WORDS else []
    return pages


def real_pages(model: Any, processor: Any, documents: Path, pages: int) -> Part:
    """Reads pages of real PDF files: whole, a part at the size of training pages, and its words in our own print."""
    whole = [page for name in PDFS for page in spread_pages(at(documents, name), pages // len(PDFS))]
    parts = [crop(page) for page in whole]
    drawn = [redrawn((e.text for e in part.entries), i) for i, part in enumerate(parts)]
    plain = [redrawn(letters(page_text(part)).split(), i) for i, part in enumerate(parts)]
    kinds = dict(zip(SHOWN, (whole, parts, drawn, plain), strict=True))
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


# Other instructions, and text alone


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


def faq(text: str) -> list[tuple[str, str]]:
    """Returns the (question, answer) pairs of the Debian FAQ."""
    pairs = []
    for block in re.split(r"\n(?=\d+\.\d+\.\s)", text)[1:]:
        question, _, rest = block.partition("\n\n")
        question = re.sub(r"^\d+\.\d+\.\s+", "", " ".join(question.split()))
        reply = " ".join(rest.split("\nChapter ")[0].split())
        if question.endswith("?") and len(reply) > 200:
            pairs.append((question, reply))
    return pairs


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


# Prose


def docstrings() -> str:
    """Returns the docstrings of the standard library's modules, one paragraph after another."""
    texts = []
    for path in sorted(Path(ast.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        named = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, named)]
    return "\n\n".join(text for text in texts if len(text) > 200)


def shared(text: str, others: set[tuple[str, ...]]) -> float:
    """Returns the share of a text's sequences of `OVERLAP` words that are among `others`."""
    return float(np.mean([one in others for one in sequences(text)]))


def sequences(text: str) -> list[tuple[str, ...]]:
    """Returns every sequence of `OVERLAP` words of a text."""
    words = text.split()
    return [tuple(words[i : i + OVERLAP]) for i in range(len(words) - OVERLAP + 1)]


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


# Long pages


def long_pages(model: Any, processor: Any, documents: Path, pages: int) -> Part:
    """Asks about and reads pages of more paper than in training, with as much text; questions also with less cache."""
    scores = torch.from_numpy(curve_table(COMMITTED).scores)
    result: Part = {"window": WINDOW, "shares": [round(share, 4) for share in SHARES]}
    before = model.config.image_grid_pinpoints, processor.image_processor.image_grid_pinpoints
    for size, style in SIZES.items():
        tiles = [[style.rows * CELL_HEIGHT, style.columns * WIDTH // 2]]
        model.config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = tiles
        records = [draw_record("evaluation", 3, i, style) for i in range(pages)]
        for task in ("qa", "read"):
            questions = PageTask(task, records, READ_PROMPT, SEED).questions
            batch = make_batch(processor, questions, range(len(questions)))
            tokens = batch.inputs["input_ids"].shape[1]
            budgets = [round(share * tokens) for share in SHARES]
            options = {"window": WINDOW, "rho": 0.1, "mode": "exact", "pooling_kernel": 5, "seed": SEED}
            chosen = {"full": make_policy_from("full", None, scores, options)} | {
                f"{method} {budget}": make_policy_from(method, budget, scores, options)
                for method in (METHODS if task == "qa" else ())
                for budget in budgets
            }
            variants = {name: Variant(policy) for name, policy in chosen.items()}
            texts = {
                name: [processor.tokenizer.decode(row, skip_special_tokens=True) for row in reply.tokens]
                for name, reply in answer(model, batch, variants, 8 if task == "qa" else 96).items()
            }
            values = {
                name: [one.value for one in PageTask(task, records, READ_PROMPT, SEED).score(text)]
                for name, text in texts.items()
            }
            result[f"{size}, {task}"] = {
                "n": pages,
                "prompt_tokens": tokens,
                "budgets": budgets,
                "accuracy": {name: mean(row) for name, row in values.items()},
                "examples": [{"wanted": q.answer, "answer": texts["full"][i]} for i, q in enumerate(questions[:3])],
            }
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


def measure(documents: Path, names: Iterable[str], stored: Path = STORED, counts: int | None = None) -> dict[str, Any]:
    """Measures parts that `stored` does not have, writes it after each of them, and returns all.

    Args:
        documents: folder with the unpacked packages.
        names: keys of `PARTS`.
        stored: file of the results.
        counts: samples of every part; None for those of `PARTS`.

    Raises:
        DataError: if a document is missing.
        ModelError: if the checkpoint cannot be assembled.
    """
    results = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    missing = [name for name in names if name not in results]
    if not missing:
        return results
    with loaded(UPDATES) as (model, processor):
        results = heading("unseen", model.device, model=NAME) | results
        base = Base(read_pin(UPDATES).locate()).model() if set(missing) & set(TEXT_ONLY) else None
        for name in missing:
            part, count = PARTS[name]
            models = (model, base) if name in TEXT_ONLY else (model,)
            results[name] = part(*models, processor, documents, count if counts is None else counts)
            write_json(stored, results)
    return results


def percent(ends: Sequence[float], sign: str = "") -> str:
    """Returns a value and its interval in per cent."""
    value, low, high = (100 * end for end in ends)
    return f"{value:{sign}.0f} [{low:{sign}.0f}, {high:{sign}.0f}]"


def nats_per_character(ends: Sequence[float], sign: str = "") -> str:
    """Returns a loss and its interval."""
    value, low, high = ends
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def real_table(part: Part) -> list[str]:
    """Returns a row per way of showing real pages."""
    lines = ["| shown | pages | words a page | words read | letters and digits alone |", "|---" * 5 + "|"]
    for name in SHOWN:
        row = part[name]
        cells = name, row["n"], row["words"], percent(row["word_accuracy"]), percent(row["letters_alone"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def instruction_table(part: Part) -> list[str]:
    """Returns a row for our instruction, one for all others, and one for each."""
    lines = ["| instruction | words read |", "|---|---|"]
    lines += [f"| {prompt} (ours) | {percent(ends)} |" for prompt, ends in part["ours"].items()]
    lines += [f"| {len(part['each'])} others, together | {percent(part['others'])} |"]
    lines += [f"| others minus ours, in points | {percent(part['others_minus_ours'], '+')} |"]
    best_first = sorted(part["each"].items(), key=lambda one: -one[1][0])
    return lines + [f"| {prompt} | {percent(ends)} |" for prompt, ends in best_first]


def loss_table(rows: Part) -> list[str]:
    """Returns a row per text: nats per character before and after tuning, and the difference."""
    rates = ("before", "after", "after minus before")
    lines = ["| text | passages | shared with training prose | before | tuned | tuned minus before |", "|---" * 6 + "|"]
    for name, row in rows.items():
        if isinstance(row, dict):
            losses = " | ".join(nats_per_character(row[rate], "+" if rate == rates[2] else "") for rate in rates)
            part = f"{row['shared']:.1%}" if "shared" in row else "-"
            lines.append(f"| {name} | {row['n']} | {part} | {losses} |")
    return lines


def chat_table(part: Part) -> list[str]:
    """Returns the loss of answers, and then how often both models answer the same, with the answers to `CHAT`."""
    lines = loss_table({"answers of the Debian FAQ, after their questions": part["loss"]})
    same = f"{percent(part['same_tokens'])} % of the first {NEW_TOKENS} tokens of {part['questions']} greedy answers"
    lines += ["", f"Both models agree on {same}, and on {percent(part['same_answers'])} % of the whole answers.", ""]
    lines += ["| asked, without an image | before | tuned |", "|---|---|---|"]
    for question in CHAT:
        answers = (part["answers"][question][name] for name in ("before", "after"))
        plain = (" ".join(text.replace("<|im_end|>", "").replace("|", "").split()) for text in answers)
        lines.append(f"| {question} | {' | '.join(plain)} |")
    return lines


def long_table(part: Part) -> list[str]:
    """Returns a row per page size, task and method, and a column per share of the prompt."""
    heads = (f"{share:.0%} of the prompt" for share in part["shares"])
    lines = [f"| page, task | prompt tokens | method | {' | '.join(heads)} |", "|---" * 6 + "|"]
    for name, row in part.items():
        if not isinstance(row, dict):
            continue
        full = percent(row["accuracy"]["full"])
        lines.append(f"| {name}, n = {row['n']} | {row['prompt_tokens']} | `full` | {full} | {full} | {full} |")
        for method in [one for one in METHODS if f"{one} {row['budgets'][0]}" in row["accuracy"]]:
            cells = (percent(row["accuracy"][f"{method} {budget}"]) for budget in row["budgets"])
            lines.append(f"| | | `{method}` | {' | '.join(cells)} |")
    return lines


TABLES = {
    "real_pages": real_table,
    "instructions": instruction_table,
    "chat": chat_table,
    "prose": loss_table,
    "long_pages": long_table,
}


def tables(stored: Path = STORED) -> dict[str, str]:
    """Returns the tables of docs/pretrained.md by the names of `PARTS`, in Markdown."""
    figures = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    lines = {name: table(figures[name]) if name in figures else ["Not measured yet."] for name, table in TABLES.items()}
    return {name: "\n".join(rows) + "\n" for name, rows in lines.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measures what is missing and prints the tables. Returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, metavar="DOCUMENTS", help="folder with the unpacked packages")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure now; all")
    args = parser.parse_args(arguments)
    try:
        measure(args.documents, args.parts)
    except SparseMMError as error:
        print(f"unseen: {error}", file=sys.stderr)
        return 1
    print("\n".join(tables().values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
