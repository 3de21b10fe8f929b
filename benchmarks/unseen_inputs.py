"""What `benchmarks.unseen` shows the model: pages and texts of unpacked Debian packages, questions, instructions."""

from __future__ import annotations

import ast
import gzip
import re
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sparsemm.datasets import pdf
from sparsemm.datasets.records import Record
from sparsemm.datasets.synthetic import page_text
from sparsemm.errors import DataError, EmptyRecord
from sparsemm.fetch import open_local
from sparsemm.training.parts import SIZES, cut_out, whole_words

DPI = 84  # draws a leading of 12 points 14 pixels high, as lines of the training pages are
SIZE = WIDTH, HEIGHT = SIZES[-1]  # pixels of the widest page that the model was trained on
WORDS = 100  # least words of a page
BODY = 0.15  # share of a document before the pages that are read: its table of contents is there
OVERLAP = 8  # words in a row that count as the same text
SHOWN = (  # ways of showing a page; the last two are what the others are compared with
    "whole page",
    "part at training size",
    "its words in our print",
    "the same, lower case without punctuation",
    "a page of our own",
    "the words of a page of our own, drawn like those of real pages",
)
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


def at(documents: Path, name: str) -> Path:
    """Returns the file of this name, or with .gz, below a folder; raises DataError if there is none."""
    for path in sorted(documents.rglob(f"{name}*")):
        if path.name in (name, f"{name}.gz") and path.is_file():
            return path
    raise DataError(f"{name} is missing", where=str(documents), hint="unpack the Debian packages that --help names")


def content(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def letters(text: str) -> str:
    """Returns a text in lower case without anything but letters, digits and blanks."""
    return " ".join(word for word in (re.sub("[^a-z0-9]", "", w) for w in text.lower().split()) if word)


def crop(page: Record) -> Record:
    """Returns the part of a page, as large as the training pages, that holds most whole words."""
    corners = [(int(e.box[0]), int(e.box[1])) for e in page.entries]
    left, top = max(corners, key=lambda corner: len(whole_words(page, corner[0], corner[1], SIZE)))
    return cut_out(page, whole_words(page, left, top, SIZE), left, top, SIZE)


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
