"""Owns the model in one thread and answers waiting requests together, in one batch."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

from examples.service.champion import Champion
from sparsemm.cache import CompressedCache, compressed_cache
from sparsemm.cache.served import image_token
from sparsemm.compat import cache_argument
from sparsemm.prompts import build_inputs

log = logging.getLogger("sparsemm.service")


class Refused(Exception):
    """Raised if the processor cannot build a prompt from this image and question."""


@dataclass(frozen=True)
class Answer:
    """A whole answer and what its prompt left in the cache.

    Attributes:
        text: text of the answer, equal to the joined pieces of a stream.
        tokens: number of generated tokens without the end token.
        kept_slots: kept slots of the prompt, over all KV heads of the compressed layers (those with full attention).
        prompt_slots: the same number without compression.
        kept_bytes: bytes of keys and values in the kept slots.
        score_name, score_version, score_digest: the score table in use.
    """

    text: str
    tokens: int
    kept_slots: int
    prompt_slots: int
    kept_bytes: int
    score_name: str
    score_version: str | None
    score_digest: str | None


class Job:
    """One request; it is created in the event loop and processed in the engine's thread."""

    def __init__(self, image: Image.Image, question: str, champion: Champion, max_new_tokens: int) -> None:
        self.image, self.question, self.champion, self.max_new_tokens = image, question, champion, max_new_tokens
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Stops the job at the next token, or before the first one; nothing more is sent."""
        self.cancelled = True

    def put(self, event: str | Answer | Exception) -> None:
        """Passes an event to the reader; callable from any thread."""
        if self.cancelled:
            return
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop is closed, so nobody reads any more
            self.cancel()

    async def events(self) -> AsyncIterator[str | Answer]:
        """Yields pieces of text as they are generated, and the answer at the end.

        Raises:
            Refused: if the prompt cannot be built.
            Exception: any error of the model.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Answer):
                return

    async def answer(self) -> Answer:
        """Returns only the answer; raises as `events`."""
        return [event async for event in self.events()][-1]  # type: ignore[return-value]


class Engine:
    """Answers requests greedily through the compressed cache, the oldest first."""

    def __init__(
        self, model: Any, processor: Any, budget: int, max_batch: int, method: str = "sparsemm", **cache_options: Any
    ) -> None:
        self.model, self.processor, self.method = model, processor, method
        self.image_token = image_token(model.config)
        self.budget, self.max_batch, self.cache_options = budget, max_batch, cache_options
        stops = model.generation_config.eos_token_id
        self._stops = set(stops if isinstance(stops, list) else [stops])
        self.on_batch: Callable[[int], None] = lambda size: None  # called before each batch
        self.on_answer: Callable[[Answer], None] = lambda answer: None  # called with each whole answer
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running: list[Job] = []
        self._thread = threading.Thread(target=self._work, name="engine")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Tells whether the thread still works."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Returns the number of jobs that have not begun."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._queue.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Cancels running and waiting jobs, and ends the thread."""
        with self._changed:
            self._closed = True
            for job in [*self._queue, *self._running]:
                job.cancel()
            self._changed.notify()
        self._thread.join()

    def _next(self) -> list[Job]:
        """Waits for jobs and takes those at the head of the queue that share a score table; empty after `close`."""
        with self._changed:
            self._running = []
            while not self._running:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    break
                while self._queue and len(self._running) < self.max_batch:
                    if self._running and self._queue[0].champion is not self._running[0].champion:
                        break
                    job = self._queue.popleft()
                    if not job.cancelled:
                        self._running.append(job)
            return self._running

    def _work(self) -> None:
        while jobs := self._next():
            self._answer(jobs)

    def _answer(self, jobs: list[Job]) -> None:
        try:
            try:
                images, questions = [[job.image] for job in jobs], [job.question for job in jobs]
                inputs = build_inputs(self.processor, images, questions).to(self.model.device)
            except Exception as error:
                if len(jobs) == 1:
                    raise Refused(str(error)) from error
                for job in jobs:  # one of them cannot be read and must not affect the others
                    self._answer([job])
                return
            self._generate(jobs, inputs)
        except Exception as error:  # after any failure the thread serves the next batch
            if not isinstance(error, Refused):
                log.exception("a batch of %d failed", len(jobs))
            for job in jobs:
                job.put(error)

    @torch.inference_mode()
    def _generate(self, jobs: list[Job], inputs: Any) -> None:
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        table = jobs[0].champion.table
        image = None if self.image_token is None else inputs["input_ids"] == self.image_token
        cache = compressed_cache(self.model, self.method, self.budget, table, image_mask=image, **self.cache_options)
        self.on_batch(len(jobs))
        rows = [_Row(job, self.processor.tokenizer, self._stops) for job in jobs]
        prompts = inputs["attention_mask"].sum(-1).tolist()
        self.model.generate(
            **inputs,
            **cache_argument(cache),
            do_sample=False,
            use_cache=True,
            max_new_tokens=max(job.max_new_tokens for job in jobs),
            stopping_criteria=StoppingCriteriaList([_Watch(rows, cache, prompts, self.on_answer)]),
        )


class _Row:
    """The text of one row of a batch."""

    def __init__(self, job: Job, tokenizer: Any, stops: set[int]) -> None:
        self.job, self.tokenizer, self.stops = job, tokenizer, stops
        self.tokens: list[int] = []
        self.text = ""
        self.done = False

    def add(self, token: int) -> None:
        """Sends the text that the token adds."""
        ended = token in self.stops
        if not ended:
            self.tokens.append(token)
        self.done = ended or self.job.cancelled or len(self.tokens) >= self.job.max_new_tokens
        # All tokens are decoded each time, because a single token may have no text of its own; a forward costs more.
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.done or not text.endswith("\ufffd"):  # bytes of a character that is not complete yet
            if text != self.text:
                self.job.put(text[len(self.text) :])
            self.text = text


class _Watch(StoppingCriteria):
    """Receives every new token, sends its text, and ends a row that is finished or cancelled."""

    def __init__(
        self, rows: list[_Row], cache: CompressedCache, prompts: list[int], on_answer: Callable[[Answer], None]
    ) -> None:
        self.rows, self.cache, self.prompts, self.on_answer = rows, cache, prompts, on_answer

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Returns which rows end here: (B,) bool."""
        for i, (row, token) in enumerate(zip(self.rows, input_ids[:, -1].tolist(), strict=True)):
            if not row.done:  # a row that has ended continues as padding until the others end
                row.add(token)
                if row.done:
                    answer = self._answer(i)
                    self.on_answer(answer)
                    row.job.put(answer)
        return torch.tensor([row.done for row in self.rows], dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def _answer(self, i: int) -> Answer:
        row = self.rows[i]
        kept = sum(int(slots[i].sum()) for slots in self.cache.budgets())
        heads = sum(slots.shape[1] for slots in self.cache.budgets())
        used = row.job.champion.identity
        return Answer(
            text=row.text,
            tokens=len(row.tokens),
            kept_slots=kept,
            prompt_slots=self.prompts[i] * heads,
            kept_bytes=kept * self.cache.slot_bytes(),
            score_name=used.name,
            score_version=used.version,
            score_digest=used.digest,
        )
