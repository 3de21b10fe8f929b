"""Retrieval heads: which heads look at the word that a model is about to copy from its prompt, without any image.

The prompt holds words in random order, each of them once, and asks for them again; the answer is known. So every token
of the answer has one token of the prompt that it is copied from, and a head hits if this is its strongest key. As with
answers read off a page, only tokens count that the model itself would say there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.chase.hits import append_answers, look
from sparsemm.chase.stage import metrics, write_curve
from sparsemm.chase.work import checkpoint_header, model_header
from sparsemm.datasets.synthetic import draw_words
from sparsemm.errors import DataError, ScoreTableError
from sparsemm.files import result_path, write_json
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.prompts import chat_prompt
from sparsemm.scores import ScoreTable

PROMPTS, WORDS = 48, 100
INSTRUCTION = "Repeat this text:"
FOLDER = "text"  # below artifacts/scores and artifacts/budgets


class Copy(NamedTuple):
    """What the heads of a model do while it copies a text of T tokens that are not blank.

    Attributes:
        hits: (L, Hq, T) bool, whether the head's strongest key is the token that is copied.
        right: (T,) bool, whether the model itself would say the token.
    """

    hits: NDArray[np.bool_]
    right: NDArray[np.bool_]


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
    """Score every head of a language model on copying text from its prompt.

    Args:
        model: a language model of transformers (`AutoModelForCausalLM`), or a multimodal model, in eval mode.
        processor: its tokenizer, or the processor of a multimodal model. Without a chat template the text stands alone.
        prompts: how many texts are copied; each is a sample of the table.
        words: of a text.
        seed: of the words.
        batch_size: prompts that go through the model together.
        instruction: stands before the text, where there is a chat template.
        header: keys of the table's header that replace those read off the model.

    Returns:
        a table whose scores are hits, and whose header has the source "text".

    Raises:
        DataError: if there is nothing to copy, or it is too long for the model.
        ModelError: if the model's attention cannot be observed.
        ScoreTableError: if the model copies nothing, or no head ever hits.
    """
    known = {"model": model.config._name_or_path or type(model).__name__, **model_header(model)}
    known |= {"revision": getattr(model.config, "_commit_hash", None), **(header or {})}
    settings = {"prompts": prompts, "words": words, "seed": seed, "instruction": instruction}
    copies = [
        copy
        for texts in _batches(prompts, words, seed, batch_size)
        for copy in copy_texts(model, processor, texts, instruction)
    ]
    return _table(copies, known, settings)


def copy_texts(model: Any, processor: Any, texts: list[str], instruction: str = INSTRUCTION) -> list[Copy]:
    """One forward pass over prompts and answers: what the heads look at while each text is copied.

    Args:
        model, processor, instruction: as of `chase_text`.
        texts: words with single blanks between; nothing stands twice in a text, or what is copied is ambiguous.

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
    spoken = [np.array([t for t, token in enumerate(text) if token not in blank], dtype=np.int64) for text in answers]
    rows = [(first + at).tolist() for first, at in zip(batch.first_rows, spoken, strict=True)]
    copies = []
    for b, looked in enumerate(look(model, batch.inputs, rows)):
        source = batch.first_rows[b] + 1 - len(prompts[b]) + len(pieces[b][0]) + spoken[b]
        wanted = np.array(answers[b], dtype=np.int64)[spoken[b]]
        copies.append(Copy(looked.indices.numpy() == source, looked.predicted.numpy() == wanted))
    return copies


def run(params: Params, key: str, root: Path = Path("."), prompts: int = PROMPTS) -> None:
    """Score the heads of a model of params.yaml on text: artifacts/scores/text/<key>.safetensors, .json and .csv.

    Raises:
        DataError, ModelError, ScoreTableError: as `chase_text`.
        ParamsError: if the model is unknown.
    """
    entry = params.model(key)
    batches = _batches(prompts, WORDS, 0, params.of(key).chase.batch_size)
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


def _batches(prompts: int, words: int, seed: int, size: int) -> list[list[str]]:
    """The texts, some at a time; a text depends on the seed, its number and its length alone."""
    if prompts < 1 or words < 1 or size < 1:
        what = f"{prompts} texts of {words} words, {size} at a time, leave nothing to copy"
        raise DataError(what, where="text", hint="ask for at least one of each")
    texts = [" ".join(draw_words(random.Random(f"sparsemm/text/{seed}/{i}"), words)) for i in range(prompts)]
    return [texts[first : first + size] for first in range(0, prompts, size)]


def _tokens(processor: Any, text: str, instruction: str) -> tuple[list[int], list[int], list[int]]:
    """Tokens of a prompt before the text, of the text itself (the answer's, too), and after it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    templates = tokenizer.chat_template or getattr(processor, "chat_template", None)
    prompt = chat_prompt(processor, [], f"{instruction}\n{text}") if templates else f"{text}\n"
    before, *after = prompt.split(text)
    if len(after) != 1 or not text.strip():
        what = f"the text stands {len(after)} times in its prompt" if text.strip() else "there is no text to copy"
        raise DataError(what, where="text", hint="the chat template has to repeat a message once, as it is")
    # Templates write their own special tokens; the tokenizer must not add a second <s>.
    special = not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token))
    parts = [before, text, after[0]]
    encoded = [tokenizer(part, add_special_tokens=special and not n).input_ids for n, part in enumerate(parts)]
    return encoded[0], encoded[1], encoded[2]


def _counts(copies: list[Copy]) -> NDArray[np.int64]:
    """(N, 3) int64: tokens that are copied, those of them the model would say, and those scored, which are the same."""
    return np.array([[len(copy.right), copy.right.sum(), copy.right.sum()] for copy in copies], dtype=np.int64)


def _table(copies: list[Copy], header: Mapping[str, Any], settings: dict[str, Any]) -> ScoreTable:
    scored, where = int(_counts(copies)[:, 2].sum()), str(header["model"])
    if scored == 0:
        hint = "scores need a model that can repeat a text from its prompt"
        raise ScoreTableError("the model copies no token", where=where, hint=hint)
    hits = np.stack([copy.hits[:, :, copy.right].sum(axis=2, dtype=np.int64) for copy in copies])
    about = {
        "source": "text",
        "samples": len(copies),
        "tokens": scored,
        "tokens_copied": int(_counts(copies)[:, 0].sum()),
        "mode": "ground_truth",
        "params": settings,
    }
    table = ScoreTable.from_samples(hits.astype(np.float64), hits.sum(axis=0), {**about, **header})
    table.normalised()  # refuses a table without a single hit
    return table
