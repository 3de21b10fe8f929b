"""Draws training batches: pages of one size, as the tensors that the real processor would return."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sparsemm.datasets.records import Entry, Record
from sparsemm.datasets.synthetic import ANCHORS, CELL_HEIGHT, CELL_WIDTH, PageStyle, draw_record, page_text, questions
from sparsemm.training.architectures import PATCH, TILE

READ_PROMPT = "Read the page."
CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789:"  # class 0 is blank
IGNORE = -100
# Prompt, answer, and the raster index of the visual token under each character of the answer; None: not known.
Turn = tuple[str, str, list[int] | None]


@dataclass(frozen=True)
class Batch:
    """The tensors of one step."""

    # keyword arguments of the model's forward; pixel_values are uint8 with one channel until `to`
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor  # (B, S) int64, the answer tokens at their own positions; `IGNORE` outside answers
    characters: torch.Tensor  # (B, N, 2) int64, the two characters under each high-resolution visual token
    lines: torch.Tensor  # (B, N) int64, index of the anchor of the line under a visual token, or `IGNORE`
    # (B, S) int64, index of the visual token under the answer token at this position, or `IGNORE`
    pointers: torch.Tensor

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        inputs = {key: change(value) for key, value in self.inputs.items()}
        rest = (self.labels, self.characters, self.lines, self.pointers)
        return Batch(inputs, *(change(tensor) for tensor in rest))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory, from which a GPU can copy while it computes."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: str) -> Batch:
        """Returns the batch on a device, with normalised pixels."""
        batch = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        batch.inputs["pixel_values"] = normalised(batch.inputs["pixel_values"])
        return batch


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Converts uint8 pixels of the functions below to fp32 in -1..1, in the real image processor's shape.

    (B, 1 + tiles, 1, 84, 84) uint8 -> (B, 1 + tiles, 3, 84, 84), (patches, 1, 49) uint8 -> (patches, 3 * 2 * 49).
    """
    values = pixels.float().div_(127.5).sub_(1.0)
    if values.ndim == 3:
        return values.expand(-1, 6, -1).flatten(1)  # three channels times two frames
    return values.expand(-1, -1, 3, -1, -1).contiguous()


def llava_pixels(pages: np.ndarray) -> torch.Tensor:
    """Splits (B, h, w) uint8 pages into a thumbnail and tiles, (B, 1 + tiles, 1, 84, 84) uint8."""
    rows, columns = pages.shape[1] // TILE, pages.shape[2] // TILE
    small = np.stack([np.asarray(Image.fromarray(p).resize((TILE, TILE), Image.Resampling.BICUBIC)) for p in pages])
    tiles = pages.reshape(-1, rows, TILE, columns, TILE).transpose(0, 1, 3, 2, 4).reshape(len(pages), -1, TILE, TILE)
    stacked = np.concatenate([small[:, None], tiles], axis=1)
    return torch.from_numpy(stacked)[:, :, None]


def idefics3_pixels(pages: np.ndarray) -> torch.Tensor:
    """Splits pages as `llava_pixels` does, but the whole page is last, and alone if it is no larger than a tile."""
    pixels = llava_pixels(pages)
    return pixels[:, 1:] if pixels.shape[1] == 2 else pixels.roll(-1, 1)


def qwen_pixels(pages: np.ndarray) -> torch.Tensor:
    """Splits (B, h, w) uint8 pages into (B * patches, 1, 7 * 7) uint8 in the order of Qwen2VLImageProcessor."""
    half = PATCH // 2
    b, h, w = pages.shape
    patches = torch.from_numpy(pages).view(b, h // PATCH, 2, half, w // PATCH, 2, half).permute(0, 1, 4, 2, 5, 3, 6)
    return patches.reshape(-1, 1, half * half)


def qwen_positions(start: int, rows: int, columns: int, length: int) -> torch.Tensor:
    """Returns the M-RoPE positions (3, S) of a sequence whose `rows` x `columns` visual tokens begin at index `start`.

    They are the same for every page of a batch, so that the model need not compute them page by page on the device.
    """
    visual = rows * columns
    cell = torch.arange(visual, dtype=torch.int64, device="cpu")
    row, column = cell // columns, cell % columns
    before = torch.arange(start, dtype=torch.int64, device="cpu")
    after = torch.arange(length - start - visual, dtype=torch.int64, device="cpu") + start + max(rows, columns)
    grid = start + torch.stack([torch.zeros_like(row), row, column])
    return torch.cat([before.expand(3, -1), grid, after.expand(3, -1)], dim=1)


def _targets(record: Record, is_drawn: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the characters (rows, columns, 2) and the line's anchor (rows, columns) under the visual tokens.

    Only for pages that are drawn are they known: other pages have neither.
    """
    width, height = record.image.size
    grid = np.zeros((height // CELL_HEIGHT, width // CELL_WIDTH), dtype=np.int64)
    lines = np.full((height // PATCH, width // PATCH), IGNORE, dtype=np.int64)
    if not is_drawn:
        return grid.reshape(*lines.shape, 2), lines
    for left, right in zip(record.entries[::2], record.entries[1::2], strict=True):
        for entry in (left, right):
            row, cell = int(entry.box[1]) // CELL_HEIGHT, int(entry.box[0]) // CELL_WIDTH
            grid[row, cell : cell + len(entry.text)] = [CHARACTERS.index(c) for c in entry.text]
            # Under a causal mask the first token of an anchor does not see the whole anchor.
            first = cell // 2 + (1 if entry is left else 0)
            lines[row, first : (cell + len(entry.text) + 1) // 2] = ANCHORS.index(left.text.rstrip(":"))
    return grid.reshape(*lines.shape, 2), lines


def _pointers(entry: Entry, columns: int) -> list[int]:
    """Returns the raster index of the visual token under each character of an entry."""
    row, cell = int(entry.box[1]) // CELL_HEIGHT, int(entry.box[0]) // CELL_WIDTH
    return [row * columns + (cell + i) // 2 for i in range(len(entry.text))]


class BatchMaker:
    """Draws pages of the train split and turns them into batches for one small model."""

    def __init__(self, processor: Any, seed: int) -> None:
        self.processor, self.tokenizer, self.seed = processor, processor.tokenizer, seed
        self.qwen = hasattr(processor, "video_processor")
        self.tiled = hasattr(processor, "image_seq_len")  # Idefics3
        self.image_token: str = "<|image_pad|>" if self.qwen else "<image>"
        self.image_id: int = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.drawn = 0
        self.rng = random.Random(f"batches/{seed}")

    def _turns(self, record: Record, read: bool, count: int) -> list[Turn]:
        """Returns the turns about a page: one that reads it, or `count` questions."""
        columns = record.image.size[0] // PATCH
        under = [_pointers(entry, columns) for entry in record.entries]
        if read:
            joined = list(under[0])
            for positions in under[1:]:
                joined += [positions[0], *positions]  # the blank between two words points at the second one
            return [(READ_PROMPT, page_text(record), joined)]
        pairs = list(zip(questions(record), under[1::2], strict=True))
        return [(q.prompt, q.answer, where) for q, where in (self.rng.choice(pairs) for _ in range(count))]

    def _tokens(self, turns: list[Turn], image: str) -> tuple[list[int], list[int], list[int]]:
        """Returns token ids, labels and pointers of a conversation, with `image` in the place of the image token."""
        ids: list[int] = []
        labels: list[int] = []
        pointers: list[int] = []
        messages: list[dict[str, Any]] = []
        text = ""
        for number, (prompt, answer, under) in enumerate(turns):
            parts = [{"type": "image"}] * (number == 0) + [{"type": "text", "text": prompt}]
            messages.append({"role": "user", "content": parts})
            for answered in (False, True):
                if answered:
                    messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
                longer = self.processor.apply_chat_template(messages, add_generation_prompt=not answered)
                written = longer[len(text) :].replace(self.image_token, image)
                new = self.tokenizer(written, add_special_tokens=False).input_ids
                text = longer
                ids += new
                if not answered:
                    labels += [IGNORE] * len(new)
                    pointers += [IGNORE] * len(new)
                    continue
                end = new.index(self.tokenizer.eos_token_id)  # is a label; the newline after it is not
                labels += new[: end + 1] + [IGNORE] * (len(new) - end - 1)
                character = 0
                for token in new[:end]:
                    pointers.append(under[character] if under else IGNORE)
                    character += len(self.tokenizer.convert_ids_to_tokens(token))
                pointers += [IGNORE] * (len(new) - end)
        return ids, labels, pointers

    def make(self, size: int, style: PageStyle, read: bool, turns: int = 4) -> Batch:
        """Draws a batch of `size` pages of one style, for reading (one turn) or for answering `turns` questions."""
        records = [draw_record("train", self.seed, self.drawn + i, style) for i in range(size)]
        self.drawn += size
        return self.batch(records, [self._turns(record, read, turns) for record in records])

    def batch(self, records: list[Record], turns: list[list[Turn]]) -> Batch:
        """Returns the batch of these pages, which have one size, with a conversation about each."""
        pages = np.stack([np.asarray(record.image)[:, :, 0] for record in records])
        # Where the characters of the answers are is known of drawn pages alone.
        targets = [_targets(record, rows[0][2] is not None) for record, rows in zip(records, turns, strict=True)]
        characters = torch.from_numpy(np.stack([t[0] for t in targets]))
        lines = torch.from_numpy(np.stack([t[1] for t in targets]))
        rows, columns = lines.shape[1:]
        extra: dict[str, torch.Tensor] = {}
        image = self.image_token * (rows * columns)
        if self.qwen:
            extra["pixel_values"] = qwen_pixels(pages)
            extra["image_grid_thw"] = torch.tensor(
                [[1, 2 * rows, 2 * columns]] * len(pages), dtype=torch.int64, device="cpu"
            )
        elif self.tiled:
            extra["pixel_values"] = idefics3_pixels(pages)
            is_split = extra["pixel_values"].shape[1] > 1
            shape = {"rows": [[is_split * rows * PATCH // TILE]], "cols": [[is_split * columns * PATCH // TILE]]}
            image = self.processor.replace_image_token(shape, 0)
        else:
            extra["pixel_values"] = llava_pixels(pages)
            extra["image_sizes"] = torch.tensor([pages.shape[1:]] * len(pages), dtype=torch.int64, device="cpu")
            image = self.image_token * ((TILE // PATCH) ** 2 + rows * (columns + 1))  # thumbnail; a newline per row
        rows_of_tokens = [self._tokens(conversation, image) for conversation in turns]
        longest = max(len(row[0]) for row in rows_of_tokens)
        pad = self.tokenizer.pad_token_id
        # Right padding: under a causal mask no answer token sees it, so no attention mask is needed.
        padded = (
            [row[part] + [fill] * (longest - len(row[part])) for row in rows_of_tokens]
            for part, fill in enumerate((pad, IGNORE, IGNORE))
        )
        ids, labels, pointers = (torch.tensor(rows, dtype=torch.int64, device="cpu") for rows in padded)
        if self.qwen:
            extra["mm_token_type_ids"] = (ids == self.image_id).long()
            start = rows_of_tokens[0][0].index(self.image_id)
            extra["position_ids"] = qwen_positions(start, rows, columns, longest)[:, None].repeat(1, len(pages), 1)
        return Batch({"input_ids": ids, **extra}, labels, characters.flatten(1, 2), lines.flatten(1, 2), pointers)


class _Drawn(Dataset[Batch]):
    """The data set of a loader, which maps (number of the batch, style, whether to read) to a batch."""

    def __init__(self, maker: BatchMaker, size: int, seeded: bool) -> None:
        self.maker, self.size, self.seeded = maker, size, seeded

    def __getitem__(self, key: tuple[int, PageStyle, bool]) -> Batch:
        number, style, read = key
        self.maker.drawn = number * self.size
        if self.seeded:
            self.maker.rng.seed(f"batches/{self.maker.seed}/page batch {number}")
        return self.maker.make(self.size, style, read)


class PageFeed:
    """Supplies page batches in order. Worker processes, if any, draw them ahead of the training.

    Workers draw out of order, so each of their batches has its own generator for the choice of questions. Without
    workers one generator serves all batches, as it did for the tiny checkpoints. `plan` returns (style, whether to
    read) for (number of a batch, stage); with `pin`, batches are in page-locked memory.
    """

    def __init__(
        self,
        maker: BatchMaker,
        size: int,
        plan: Callable[[int, int], tuple[PageStyle, bool]],
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        self.plan = plan
        self.number, self.stage = 0, 0
        self.batches: Iterator[Batch] | None = None
        # Spawned, because a fork of a process with CUDA and tokenizer threads may hang.
        ahead: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
        self.loader = DataLoader(
            _Drawn(maker, size, workers > 0), None, sampler=self, num_workers=workers, pin_memory=pin, **ahead
        )

    def __iter__(self) -> Iterator[tuple[int, PageStyle, bool]]:
        """Yields without end what to draw, from the next batch on, for the current stage."""
        stage = self.stage  # not a generator function, whose body would start at the first batch
        return ((number, *self.plan(number, stage)) for number in count(self.number))

    def next(self, number: int, stage: int) -> Batch:
        """Returns batch `number` of a stage; batches that were drawn ahead are dropped if another one is requested."""
        if self.batches is None or (number, stage) != (self.number, self.stage):
            self.number, self.stage = number, stage
            self.batches = iter(self.loader)
        self.number = number + 1
        return next(self.batches)
