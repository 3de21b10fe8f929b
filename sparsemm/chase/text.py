"""Retrieval heads: which heads attend to the word that a model is about to copy from its prompt, without any image.

The prompt holds words in random order, each of them once, and asks for them again, so the answer is known. Every token
of the answer is copied from one token of the prompt, and a head hits if that token is its strongest key. As for answers
read off a page, only those tokens count that the model itself predicts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.chase.scoring import checkpoint_header, model_header
from sparsemm.chase.stage import metrics, write_curve
from sparsemm.chase.strongest_keys import strongest_keys
from sparsemm.datasets.synthetic import draw_words
from sparsemm.errors import DataError, ScoreTableError
from sparsemm.files import result_path, write_json
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.prompts import append_answers, chat_prompt
from sparsemm.scores import ScoreTable

PROMPTS, WORDS = 48, 100
INSTRUCTION = "Repeat this text:"
FOLDER = "text"  # below artifacts/scores and artifacts/budgets


class Copy(NamedTuple):
    """The hits while a model copies a text of T tokens that are not blank."""

    hits: NDArray[np.bool_]  # (L, Hq, T) bool, whether the head's strongest key is the token that is copied
    predicted: NDArray[np.bool_]  # (T,) bool, whether the model itself predicts the token


def chase_text(
    model: Any,
    processor: Any,
    *,
    prompts: int = PROMPTS,
    words: int = WORDS,
    seed: int = 0,
    batch_size: int = 8,
    instruction: str = INSTRUCTION,
    header: Mapping[str, Any] | None = None,
) -> ScoreTable:
    """Scores every head of a language model on copying text from its prompt.

    Args:
        model: a language model of transformers (`AutoModelForCausalLM`) or a multimodal model, in eval mode.
        processor: its tokenizer, or the processor of a multimodal model. Without a chat template the prompt is the text
            alone.
        prompts: number of texts; each is a sample of the table.
        words: number of words in a text.
        seed: seed of the words.
        batch_size: prompts that go through the model together.
        instruction: the instruction before the text, if there is a chat template.
        header: entries of the table's header that replace those read from the model.

    Returns:
        a table whose scores are hits, and whose header has the source "text".

    Raises:
        DataError: if there is nothing to copy, or it is too long for the model.
        ModelError: if the model's attention cannot be observed.
        ScoreTableError: if the model copies nothing, or no head ever hits.
    """
    about_model = {"model": model.config._name_or_path or type(model).__name__, **model_header(model)}
    about_model |= {"revision": getattr(model.config, "_commit_hash", None), **(header or {})}
    settings = {"prompts": prompts, "words": words, "seed": seed, "instruction": instruction}
    copies = [
        copy
        for texts in draw_texts(prompts, words, seed, batch_size)
        for copy in copy_texts(model, processor, texts, instruction)
    ]
    return _table(copies, about_model, settings)


def copy_texts(model: Any, processor: Any, texts: list[str], instruction: str = INSTRUCTION) -> list[Copy]:
    """Runs one forward pass over prompts and answers, and returns the hits while each text is copied.

    Args:
        model, processor, instruction: see `chase_text`.
        texts: words separated by single spaces, each once in a text so that its source is unambiguous.

    Raises:
        DataError: if a text has no tokens, is changed by the chat template, or is too long for the model.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    pieces = [_tokens(processor, text, instruction) for text in texts]
    longest = max(len(before) + 2 * len(text) + len(after) for before, text, after in pieces)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        what = f"prompt and answer have {longest} tokens, the model takes {limit}"
        raise DataError(what, where="text", hint="copy fewer words")
    prompts = [[*before, *text, *after] for before, text, after in pieces]
    answers = [text for _, text, _ in pieces]
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.int64, device="cpu")
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, -len(prompt) :] = torch.tensor(prompt, dtype=torch.int64, device="cpu")
        mask[row, -len(prompt) :] = 1
    batch = append_answers({"input_ids": ids, "attention_mask": mask}, answers, tokenizer.pad_token_id or 0)
    blank = {token for token in {token for text in answers for token in text} if not tokenizer.decode([token]).strip()}
    indices = [np.array([t for t, token in enumerate(text) if token not in blank], dtype=np.int64) for text in answers]
    rows = [(first + index).tolist() for first, index in zip(batch.first_rows, indices, strict=True)]
    copies = []
    for b, keys in enumerate(strongest_keys(model, batch.inputs, rows)):
        sources = batch.first_rows[b] + 1 - len(prompts[b]) + len(pieces[b][0]) + indices[b]
        expected = np.array(answers[b], dtype=np.int64)[indices[b]]
        copies.append(Copy(keys.positions.numpy() == sources, keys.predicted.numpy() == expected))
    return copies


def run(params: Params, key: str, root: Path = Path("."), prompts: int = PROMPTS) -> None:
    """Scores the heads of a model of params.yaml on text: artifacts/scores/text/<key>.safetensors, .json and .csv.

    Raises ParamsError if the model is unknown, and what `chase_text` raises.
    """
    entry = params.model(key)
    batches = draw_texts(prompts, WORDS, 0, params.of(key).chase.batch_size)
    model, processor = load_model(entry)
    copies: list[Copy] = []
    for texts in progress(batches, len(batches), f"chase {key}, text"):
        copies += copy_texts(model, processor, texts)
    settings = {"prompts": prompts, "words": WORDS, "seed": 0, "instruction": INSTRUCTION}
    table = _table(copies, checkpoint_header(model, entry), settings)

    def path(suffix: str) -> Path:
        return result_path(root, f"scores/{FOLDER}", key, suffix)

    table.save(path(".safetensors"))
    write_json(path(".json"), metrics(table, _counts(copies)))
    write_curve(path(".csv"), table)


def draw_texts(prompts: int, words: int, seed: int, batch_size: int) -> list[list[str]]:
    """Draws the texts, in batches; a text depends on the seed, its number and its length alone."""
    if prompts < 1 or words < 1 or batch_size < 1:
        what = f"{prompts} texts of {words} words, {batch_size} at a time, leave nothing to copy"
        raise DataError(what, where="text", hint="ask for at least one of each")
    texts = [" ".join(draw_words(random.Random(f"sparsemm/text/{seed}/{i}"), words)) for i in range(prompts)]
    return [texts[first : first + batch_size] for first in range(0, prompts, batch_size)]


def _tokens(processor: Any, text: str, instruction: str) -> tuple[list[int], list[int], list[int]]:
    """Returns the tokens of a prompt before the text, of the text (which is also the answer), and after it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    templates = tokenizer.chat_template or getattr(processor, "chat_template", None)
    prompt = chat_prompt(processor, [], f"{instruction}\n{text}") if templates else f"{text}\n"
    before, *after = prompt.split(text)
    if len(after) != 1 or not text.strip():
        what = f"the text occurs {len(after)} times in its prompt" if text.strip() else "there is no text to copy"
        raise DataError(what, where="text", hint="the chat template has to repeat a message once, unchanged")
    # Templates write their own special tokens; the tokenizer must not add a second <s>.
    special = not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token))
    parts = [before, text, after[0]]
    encoded = [tokenizer(part, add_special_tokens=special and not n).input_ids for n, part in enumerate(parts)]
    return encoded[0], encoded[1], encoded[2]


def _counts(copies: list[Copy]) -> NDArray[np.int64]:
    """Returns `Shard.counts`, (N, 3) int64: tokens to copy; those that the model predicts; scored ones, the same."""
    return np.array([[len(c.predicted), c.predicted.sum(), c.predicted.sum()] for c in copies], dtype=np.int64)


def _table(copies: list[Copy], header: Mapping[str, Any], settings: dict[str, Any]) -> ScoreTable:
    tokens, _, scored = _counts(copies).sum(axis=0).tolist()
    if scored == 0:
        hint = "scores need a model that can repeat a text from its prompt"
        raise ScoreTableError("the model copies no token", where=str(header["model"]), hint=hint)
    hits = np.stack([copy.hits[:, :, copy.predicted].sum(axis=2, dtype=np.int64) for copy in copies])
    about_text = {
        "source": "text",
        "samples": len(copies),
        "tokens": scored,
        "tokens_copied": tokens,
        "mode": "ground_truth",
        "params": settings,
    }
    table = ScoreTable.from_samples(hits.astype(np.float64), hits.sum(axis=0), {**about_text, **header})
    table.normalised()  # refuses a table without a single hit
    return table
