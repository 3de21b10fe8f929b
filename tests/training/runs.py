"""Short trainings: prose to read, and a run that is stopped and resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Weights = dict[str, torch.Tensor]


def write_prose(folder: Path) -> Path:
    """Sixty files of a few words in random order."""
    folder.mkdir()
    for number in range(60):
        rng = random.Random(number)
        text = " ".join(rng.choice(("the", "page", "of", "some", "prose", "is", "read")) for _ in range(200))
        (folder / f"{number}.txt").write_text(text + ".\n")
    return folder


def same(one: Weights, other: Weights, part: str = "") -> bool:
    """Whether two sets of weights are equal, of those whose name contains `part`."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one if part in key)


def check_resumed_run(
    recipe: type, run: Callable[..., Weights], folder: Path, capsys: Any, last: int, **options: Any
) -> Weights:
    """A run that is stopped at step `last` and resumed ends with the weights of one that was not; returns them."""
    whole, rate_at = run(folder / "whole", **options), recipe.rate_at

    def stop(self, progress, step):
        if step == last:
            raise KeyboardInterrupt
        return rate_at(self, progress, step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "rate_at", stop)
        run(folder / "stopped", **options)
    assert not (folder / "stopped").exists()
    capsys.readouterr()
    resumed = run(folder / "stopped", **options)
    assert "resumed at step 3" in capsys.readouterr().out
    assert same(whole, resumed)
    return whole
