"""Reads prose to train on besides pages: documentation and dictionaries that Debian ships."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sparsemm.errors import DataError

FOLDERS = (Path("/usr/share/doc"), Path("/usr/share/dict"), Path("/usr/share/common-licenses"))
LENGTH = 256  # tokens of a window
HELD_OUT = 0.03  # share of the files
MOST_BYTES = 1 << 20  # bytes read of one file, so that a few changelogs do not outweigh the rest
MOST_CHARACTERS = 32_000_000  # characters kept to train on
MOST_HELD_OUT = 1_000_000  # characters kept to measure on
MOST_LOGITS = 1 << 26  # logits of one forward pass when the loss is measured
LONGEST_WORD = 30  # characters; longer words are hashes and addresses
LEAST_WORDS = 0.7  # least share of letters and blanks; tables, dumps and code have less

# Names, without .gz, of plain-text files, also of those that Debian names without a suffix.
_NAMES = re.compile(
    r"(?i)(changelog|copyright|news|readme|todo|faq)(\..*)?|[^.]+(\.(txt|text|md|markdown|rst|debian))?"
)
_NOT_TEXT = re.compile(r"(?i).*\.(html?|xml|png|gif|jpe?g|svg|pdf|ps)|makefile.*")
_TO_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "•": "*", "\t": " "})


@dataclass(frozen=True)
class Prose:
    """The concatenated token ids of all files, int16 or int32, and their origin."""

    train: np.ndarray  # (N,) tokens to train on
    held_out: np.ndarray  # (M,) tokens of files whose paragraphs are not in `train`
    source: dict[str, Any]  # entries of a card: folders, files, characters, skipped files, hash of the tokens

    def batch(self, size: int, seed: int, number: int) -> torch.Tensor:
        """Draws (size, LENGTH) int64 windows of the training text; the same for the same seed and number."""
        starts = np.random.default_rng([seed, number]).integers(0, len(self.train) - LENGTH + 1, size)
        return torch.from_numpy(self.train[starts[:, None] + np.arange(LENGTH)].astype(np.int64))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (hex SHA-256 of the path inside the folder, path) of every regular file with a name of plain text."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            plain = name.removesuffix(".gz")
            if _NAMES.fullmatch(plain) and not _NOT_TEXT.fullmatch(plain) and path.is_file() and not path.is_symlink():
                yield hashlib.sha256(str(path.relative_to(folder)).encode(errors="surrogateescape")).hexdigest(), path


def _read(path: Path) -> str | None:
    """Reads the beginning of a file, decompressed, as text; None if it cannot be read or is not text."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error):
        return None
    return None if b"\0" in content else content.decode("utf-8", errors="ignore")


def clean(text: str, characters: frozenset[str]) -> list[str]:
    """Returns the paragraphs of a text in the allowed characters, or none if the text is mostly not words.

    Accents, other characters without a counterpart, mail addresses and overlong words are dropped. Runs of blanks
    become one blank. A line without a letter or digit, such as a rule, ends a paragraph.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_TO_ASCII))
    allowed = re.escape("".join(sorted(characters)))
    plain = re.sub(f"[^{allowed}@\n]", "", "\n".join(plain.splitlines()))
    plain = re.sub(rf"\S*@\S*|\S{{{LONGEST_WORD + 1},}}", "", plain)
    lines = (" ".join(line.split()) for line in plain.split("\n"))
    kept = "\n".join(line if re.search("[A-Za-z0-9]", line) else "" for line in lines).strip("\n")
    if len(re.sub(r"[^A-Za-z\s]", "", kept)) < LEAST_WORDS * len(kept):
        return []
    return re.split(r"\n{2,}", kept) if kept else []


def read_prose(
    folders: list[Path], tokenizer: Any, most: int = MOST_CHARACTERS, most_held_out: int = MOST_HELD_OUT
) -> Prose:
    """Reads the plain-text files below `folders` as tokens, split by a hash of each file's path in its folder.

    Files are read in the order of their hashes, until there are `most` characters to train on and `most_held_out` to
    measure on.

    Only the first occurrence of a paragraph is kept, and held-out files come first: licences that hundreds of packages
    repeat are used once, and no held-out text is trained on. Raises DataError if a folder is missing, or there is less
    than a window to train on or to hold out.
    """
    for folder in folders:
        if not folder.is_dir():
            raise DataError("no such folder of prose", where=str(folder))
    characters = plain_characters(tokenizer)
    seen: set[str] = set()
    parts: dict[bool, list[str]] = {True: [], False: []}  # by whether it is held out
    room = {True: most_held_out, False: most}
    skipped = 0
    for digest, path in sorted(entry for folder in folders for entry in _files(folder)):
        is_held_out = int(digest[:8], 16) < HELD_OUT * 2**32  # the lowest hashes, so these files come first
        if room[is_held_out] <= 0:
            continue
        text = _read(path)
        paragraphs = [p for p in dict.fromkeys(clean(text or "", characters)) if p not in seen]
        if not paragraphs:
            skipped += 1
            continue
        seen.update(paragraphs)
        joined = "\n\n".join(paragraphs) + "\n\n"
        parts[is_held_out].append(joined)
        room[is_held_out] -= len(joined)
    held_out, train = _tokens(parts[True], tokenizer), _tokens(parts[False], tokenizer)
    for tokens, name in ((train, "to train on"), (held_out, "to hold out")):
        if len(tokens) < LENGTH:
            where = ", ".join(map(str, folders)) or "prose"
            raise DataError(f"fewer than {LENGTH} tokens of prose {name}", where=where, hint="name more with --prose")
    source = {
        "folders": [str(folder) for folder in folders],
        "files": len(parts[False]),
        "characters": sum(map(len, parts[False])),
        "held_out_files": len(parts[True]),
        "held_out_characters": sum(map(len, parts[True])),
        "skipped_files": skipped,
        "tokens_sha256": hashlib.sha256(train.tobytes() + b"/" + held_out.tobytes()).hexdigest(),
    }
    return Prose(train, held_out, source)


def plain_characters(tokenizer: Any) -> frozenset[str]:
    """Returns the printable ASCII characters and line feed that a tokenizer encodes without loss."""
    printable = [chr(code) for code in (10, *range(32, 127))]
    rows = tokenizer(printable, add_special_tokens=False).input_ids
    return frozenset(c for c, row in zip(printable, rows, strict=True) if tokenizer.decode(row) == c)


def _tokens(texts: list[str], tokenizer: Any) -> np.ndarray:
    """Returns the concatenated token ids of texts, without special tokens that a text spells out.

    They are int16 if the vocabulary allows it, else int32.
    """
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    dtype = np.int16 if len(tokenizer) <= 1 << 15 else np.int32
    rows = [np.zeros(0, dtype=dtype)]
    for start in range(0, len(texts), 32):  # all token ids at once as Python integers would take gigabytes
        encoded = tokenizer(texts[start : start + 32], add_special_tokens=False).input_ids
        rows += [np.asarray(row, dtype=dtype) for row in encoded]
    ids = np.concatenate(rows)
    return ids[~np.isin(ids, special)]


def prose_loss(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy of every next token of (B, S) windows, in nats per token."""
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.inference_mode()
def held_out_loss(model: Any, tokenizer: Any, prose: Prose, windows: int = 512, batch_size: int = 64) -> float:
    """Measures the cross-entropy of held-out prose, in nats per character, over at most `windows` windows."""
    batch_size = max(1, min(batch_size, MOST_LOGITS // (LENGTH * len(tokenizer))))
    count = min(windows, len(prose.held_out) // LENGTH)
    starts = np.linspace(0, len(prose.held_out) - LENGTH, count).astype(np.int64)
    rows = torch.from_numpy(prose.held_out[starts[:, None] + np.arange(LENGTH)].astype(np.int64))
    nats = sum(
        prose_loss(model, part.to(model.device)).double().item() * part[:, 1:].numel()
        for part in rows.split(batch_size)
    )
    return nats / sum(len(token) for token in tokenizer.convert_ids_to_tokens(rows[:, 1:].flatten().tolist()))
