"""Training: steps on pages and on prose, stopping and going on, what is written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sparsemm.models import load_model, new_entry
from sparsemm.training import architectures, card, scratch, train
from sparsemm.training.architectures import QwenSizes, build_tokenizer
from sparsemm.training.prose import read_prose
from sparsemm.training.scratch import Scratch
from sparsemm.training.train import main, pages_before
from tests.training.runs import check_resumed_run, same, write_prose

NAME = "small-qwen2-vl"


@pytest.fixture
def very_small(monkeypatch):
    """The architecture with sizes that train in moments, and a vision tower that is on its own for one step."""
    monkeypatch.setitem(architectures.QWEN_SIZES, NAME, QwenSizes(4, 4, 32, 32, (2, 1, 1), 1, 32))
    monkeypatch.setattr(scratch, "VISION_STEPS", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prose(tmp_path_factory.mktemp("base") / "prose")


@pytest.fixture(scope="module")
def prose(folder):
    return read_prose([folder], build_tokenizer(NAME))


def run(output: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train; the weights that were written."""
    train.train(NAME, output, batch_size=2, **options)
    return load_file(output / "model.safetensors")


def kinds(lines: str) -> set[str]:
    return {kind for kind in ("prose_answer", "read_answer", "ask_answer", "characters") if kind in lines}


def test_twenty_steps_on_the_cpu_end_in_a_checkpoint_that_can_be_added(
    very_small, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(card, "held_out", partial(card.held_out, pages=1))
    monkeypatch.setattr(train, "train", partial(train.train, every=10))
    output = tmp_path / NAME
    arguments = [NAME, "--output", str(output), "--steps", "20", "--batch-size", "2", "--device", "cpu"]
    main([*arguments, "--prose", str(folder)])
    assert kinds(capsys.readouterr().out) == {"prose_answer", "read_answer", "ask_answer", "characters"}
    entry = new_entry(str(output))
    assert entry.family == "qwen2_vl" and entry.dtype == "float32"
    model, processor = load_model(entry, device="cpu")
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    told = json.loads((output / "card.json").read_text())
    assert told["training"]["prose_share"] == 0.4 and told["training"]["steps"] == 20
    assert told["prose"]["folders"] == [str(folder)] and told["prose"]["held_out_files"] > 0
    assert 0.0 < told["prose"]["held_out_nats_per_character"] < 10.0
    assert not list(tmp_path.glob(".*"))  # no state is left


def test_a_run_that_was_stopped_ends_where_one_that_was_not_does(very_small, prose, tmp_path, capsys):
    options = {"steps": 5, "prose": prose, "prose_share": 0.4, "save_every": 3}
    check_resumed_run(Scratch, run, tmp_path, capsys, last=4, **options)


def test_prose_changes_what_is_learnt_and_no_share_is_pages_alone(very_small, prose, tmp_path):
    pages = run(tmp_path / "pages", steps=3)
    assert same(pages, run(tmp_path / "no-share", steps=3, prose=prose, prose_share=0.0))
    assert not same(pages, run(tmp_path / "mixed", steps=3, prose=prose, prose_share=0.4))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.55, 0.99])
def test_prose_has_its_share_of_the_steps_evenly_spread(share):
    on_pages = [pages_before(step + 1, share) - pages_before(step, share) for step in range(1000)]
    assert set(on_pages) <= {0, 1}
    for first in range(0, 1000, 100):
        assert abs(sum(on_pages[first : first + 100]) - 100 * (1.0 - share)) <= 1


def test_the_plan_of_pages():
    few, both = scratch.STAGES[0][0], scratch.STAGES[-1][0]
    alone, at_once = SimpleNamespace(vision_steps=400), SimpleNamespace(vision_steps=0)
    assert Scratch.plan(alone, 399, 0)[0] == scratch.STAGES[-2][0][0] and Scratch.plan(alone, 400, 0)[0] == few[0]
    assert {Scratch.plan(at_once, number, 3) for number in range(8)} == {
        (style, read) for style in both for read in (True, False)
    }


@pytest.mark.parametrize(
    "more, said",
    [
        (["--prose-share", "1"], "below 1"),
        (["--prose-share", "-0.1"], "at least 0"),
        (["--prose-share", "nan"], "at least 0"),
        (["--prose", "x", "--prose-share", "0"], "needs a --prose-share"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(more, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([NAME, "--output", str(tmp_path / "out"), *more])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_tiny_models_train_on_pages_alone_unless_asked(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["tiny-qwen2-vl", "--output", str(tmp_path), "--prose", str(tmp_path)])
    assert "needs a --prose-share" in capsys.readouterr().err
