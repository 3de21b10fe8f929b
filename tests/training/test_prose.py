"""Prose: what is read, cleaned, kept once, held out."""

from __future__ import annotations

import gzip
import math
import os
import random

import numpy as np
import pytest
import torch

from sparsemm.errors import DataError
from sparsemm.training.architectures import build, build_tokenizer
from sparsemm.training.prose import LENGTH, MOST_BYTES, clean, held_out_loss, prose_loss, read_prose

TOKENIZER = build_tokenizer("small-qwen2-vl")
CHARACTERS = frozenset(token for token in TOKENIZER.get_vocab() if len(token) == 1)


def sentence(name: str) -> str:
    rng = random.Random(name)
    return " ".join("".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(150))


@pytest.fixture
def folder(tmp_path):
    """Sixty packages' documentation: enough that some files are held out."""
    for number in range(60):
        package = tmp_path / "doc" / f"package{number}"
        package.mkdir(parents=True)
        text = f"{sentence(str(number))}\n\nEverybody repeats this licence.\n"
        if number % 2:
            (package / "changelog.Debian.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (package / "README").write_text(text, encoding="utf-8")
    return tmp_path / "doc"


def words(tokens: np.ndarray) -> str:
    return TOKENIZER.decode(tokens.tolist())


def test_every_file_is_on_one_side_and_every_paragraph_is_kept_once(folder):
    prose = read_prose([folder], TOKENIZER)
    train, held_out = words(prose.train), words(prose.held_out)
    for number in range(60):
        assert (sentence(str(number)) in train) != (sentence(str(number)) in held_out)
    assert (train + held_out).count("Everybody repeats this licence.") == 1
    source = prose.source
    assert source["files"] + source["held_out_files"] == 60 and source["held_out_files"] > 0
    assert source["characters"] == len(train) and source["held_out_characters"] == len(held_out)


def test_the_split_does_not_depend_on_where_the_folder_lies(folder, tmp_path):
    before = read_prose([folder], TOKENIZER)
    os.rename(folder, tmp_path / "elsewhere")
    after = read_prose([tmp_path / "elsewhere"], TOKENIZER)
    assert np.array_equal(before.held_out, after.held_out) and np.array_equal(before.train, after.train)
    assert before.source["tokens_sha256"] == after.source["tokens_sha256"]


def test_a_folder_named_twice_counts_once(folder):
    once, twice = read_prose([folder], TOKENIZER), read_prose([folder, folder], TOKENIZER)
    assert np.array_equal(once.train, twice.train) and np.array_equal(once.held_out, twice.held_out)


def test_what_is_no_readable_plain_text_is_skipped(folder):
    want = read_prose([folder], TOKENIZER)
    package = folder / "package0"
    (package / "changelog.gz").write_bytes(gzip.compress(sentence("cut").encode())[:-20])
    (package / "NEWS.gz").write_bytes(b"not gzip at all")
    (package / "TODO").write_bytes(b"")
    (package / "data").write_bytes(b"binary\0" + sentence("binary").encode())
    (package / "table.txt").write_text("1234 5678 +-+-+\n" * 50)
    (package / "index.html").write_text(f"<p>{sentence('html')}</p>")
    (package / "Makefile").write_text(sentence("make"))
    (package / "AUTHORS").symlink_to(package / "README")
    os.mkfifo(package / "README.pipe")
    got = read_prose([folder], TOKENIZER)
    assert np.array_equal(got.train, want.train) and np.array_equal(got.held_out, want.held_out)
    assert got.source["skipped_files"] == want.source["skipped_files"] + 5


def test_of_a_huge_file_only_the_beginning_is_read(folder):
    before = read_prose([folder], TOKENIZER).source
    huge = "".join(f"{number} is one more line of it\n" for number in range(MOST_BYTES // 16))
    assert len(huge) > 1.5 * MOST_BYTES
    (folder / "huge.gz").write_bytes(gzip.compress(huge.encode(), 1))
    after = read_prose([folder], TOKENIZER).source
    added = sum(after[key] - before[key] for key in ("characters", "held_out_characters"))
    assert 0.9 * MOST_BYTES < added <= MOST_BYTES + 2


def test_too_little_prose_and_missing_folders_are_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for folders in ([], [tmp_path / "empty"], [folder / "package1"]):
        with pytest.raises(DataError, match="--prose"):
            read_prose(folders, TOKENIZER)
    with pytest.raises(DataError, match="missing"):
        read_prose([folder, tmp_path / "missing"], TOKENIZER)


def test_cleaning():
    assert clean("“Quoted” – naïve\ttext…\n", CHARACTERS) == ['"Quoted" - naive text...']
    assert clean("one  line\n .\n  another\n=====\n\n\nthird", CHARACTERS) == ["one line", "another", "third"]
    assert clean(f"by A. Writer <a.writer@example.org> in {'0123456789abcdef' * 4}.", CHARACTERS) == ["by A. Writer in"]
    assert clean("", CHARACTERS) == [] and clean("\n \n--\n", CHARACTERS) == []
    assert clean("Съешь же ещё", CHARACTERS) == []
    assert clean("Some words and 1 of {these}", frozenset("abcdefghijklmnopqrstuvwxyz ")) == ["ome words and of these"]


def test_special_tokens_cannot_be_smuggled_in(folder):
    (folder / "README").write_text(f"{sentence('x')} <s> <|image_pad|> <|im_end|> {sentence('y')}")
    prose = read_prose([folder], TOKENIZER)
    special = [number for number, token in TOKENIZER.added_tokens_decoder.items() if token.special]
    assert not np.isin(np.concatenate([prose.train, prose.held_out]), special).any()
    assert any(sentence("x") in words(side) for side in (prose.train, prose.held_out))


def test_batches_are_windows_and_follow_seed_and_number(folder):
    prose = read_prose([folder], TOKENIZER)
    batch = prose.batch(4, seed=1, number=7)
    assert batch.shape == (4, LENGTH) and batch.dtype == torch.int64
    assert all(words(row.numpy()) in words(prose.train) for row in batch)
    assert torch.equal(batch, prose.batch(4, seed=1, number=7))
    assert not torch.equal(batch, prose.batch(4, seed=1, number=8))
    assert not torch.equal(batch, prose.batch(4, seed=2, number=7))


class Uniform(torch.nn.Module):
    """A model that finds every token equally likely."""

    device = torch.device("cpu")

    def forward(self, input_ids, use_cache):
        assert not use_cache

        class Output:
            logits = torch.zeros(*input_ids.shape, len(TOKENIZER))

        return Output


def test_the_held_out_loss_is_per_character(folder):
    prose = read_prose([folder], TOKENIZER)
    tokens = prose.held_out[:LENGTH]
    one = type(prose)(prose.train, tokens, {})
    nats = (LENGTH - 1) * math.log(len(TOKENIZER))
    characters = len(words(tokens[1:]))
    assert held_out_loss(Uniform(), TOKENIZER, one) == pytest.approx(nats / characters, rel=1e-5)


def test_the_loss_is_the_models_own_and_llava_has_one_too(folder):
    model, processor = build("tiny-llava-next-vicuna")
    prose = read_prose([folder], processor.tokenizer)
    windows = prose.batch(2, 0, 0)[:, :32]
    with torch.inference_mode():
        want = model(input_ids=windows, labels=windows).loss
        assert torch.allclose(prose_loss(model, windows), want)
