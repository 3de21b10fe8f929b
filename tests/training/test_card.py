"""Cards of checkpoints: held-out accuracy with its intervals, measured again, as a row of docs/checkpoints.md."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from sparsemm.models import content_revision
from sparsemm.training import card
from sparsemm.training.architectures import build
from sparsemm.training.card import held_out, main, row, wilson
from sparsemm.training.scratch import save

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "data" / "checkpoints"


@pytest.fixture
def few_pages(monkeypatch):
    monkeypatch.setattr(card, "held_out", partial(held_out, pages=3))


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a trained one."""
    return Path(shutil.copytree(CHECKPOINTS / "tiny-qwen2-vl", tmp_path / "tiny-qwen2-vl"))


def test_wilsons_interval():
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(10, 10)
    assert high == pytest.approx(1.0) and low == pytest.approx(10 / (10 + 1.959964**2))  # n / (n + z^2)
    assert wilson(0, 10) == pytest.approx((1.0 - high, 1.0 - low))


def test_a_card_is_measured_again_and_everything_else_in_it_stays(checkpoint, few_pages, capsys):
    path = checkpoint / "card.json"
    before, revision = json.loads(path.read_text()), content_revision(checkpoint)
    path.write_text(json.dumps(before | {"held_out": "lost"}))
    assert main([str(checkpoint)]) == 0
    after = json.loads(path.read_text())
    for style in card.STYLES:
        measured = after["held_out"][style]
        assert measured["n"] == after["held_out"]["pages_per_style"] == 3
        for figure in ("word_accuracy", "exact_match"):
            low, high = measured[f"{figure}_interval"]
            assert 0.0 <= low <= measured[figure] <= high <= 1.0
        assert measured["exact_match_interval"] == [round(x, 4) for x in wilson(3 * measured["exact_match"], 3)]
    assert after["held_out"]["one column"]["word_accuracy"] > 0.8  # it can read
    assert after | {"held_out": before["held_out"]} == before
    assert content_revision(checkpoint) == revision
    assert capsys.readouterr().out == row(after) + "\n"
    assert sorted(p.name for p in checkpoint.iterdir()) == sorted(
        p.name for p in (CHECKPOINTS / "tiny-qwen2-vl").iterdir()
    )


def test_one_that_cannot_be_measured_is_named_and_its_card_stays(checkpoint, few_pages, capsys):
    whole = (checkpoint / "card.json").read_bytes()
    (checkpoint / "config.json").write_text('{"model_type": "bert"}')
    assert main([str(checkpoint)]) == 1
    assert "bert" in capsys.readouterr().err and (checkpoint / "card.json").read_bytes() == whole
    (checkpoint / "card.json").write_text("{")
    assert main([str(checkpoint)]) == 1
    assert "card.json cannot be read" in capsys.readouterr().err
    assert main([str(checkpoint.parent / "none")]) == 1


def test_the_family_is_that_of_the_config(tmp_path, few_pages):
    folder = tmp_path / "any-name"
    save(*build("tiny-llava-next-mistral"), folder)
    told = card.write_card(folder, {"steps": 0})
    assert told["architecture"]["text"]["model_type"] == "mistral" and told["name"] == "any-name"
    assert row(told).startswith("| any-name | Mistral, GQA 16/4 | 0.0%")  # untrained: it reads nothing


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKPOINTS.iterdir()))
def test_the_documents_say_what_the_cards_say(name):
    told = json.loads((CHECKPOINTS / name / "card.json").read_text(encoding="utf-8"))
    rows = re.findall(
        rf"^\| {name} \|.*$", (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [row(told)]
