"""What is particular about a method is asked of its class: a method that joins works in every study."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import sparsemm
from sparsemm import policies
from sparsemm.cache.served import shape_of
from sparsemm.evaluate.answers import Batch, Variant, answer
from sparsemm.policies import METHODS, make_policy_from
from sparsemm.policies.h2o import AccumulatedAttention
from sparsemm.policies.per_row import PerRow
from sparsemm.policies.random_heads import RandomHeads
from sparsemm.policies.selector import Selector
from sparsemm.policies.snapkv import SnapKV
from sparsemm.prompts import build_inputs

PACKAGE = Path(sparsemm.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Every(SnapKV):
    """Rates positions by every row of the prompt, as h2o does."""

    selector: Selector = AccumulatedAttention()


@dataclass(frozen=True, kw_only=True)
class EveryDrawn(RandomHeads):
    """The same, with random heads."""

    selector: Selector = AccumulatedAttention()


@pytest.fixture
def asked(tiny, monkeypatch):
    monkeypatch.setitem(policies.METHODS, "every", Every)
    monkeypatch.setitem(policies.METHODS, "every-drawn", EveryDrawn)
    model, processor = tiny("tiny-llava-next-vicuna")
    image = Image.new("RGB", (96, 64), "white")
    return model, Batch([0, 1], build_inputs(processor, [[image], [image]], ["read", "read it"]))


def kept(method):
    settings = {"window": 4, "rho": 0.1, "mode": "exact", "seed": 3, "pooling_kernel": 5}
    return Variant(make_policy_from(method, 12, None, settings))


def test_a_method_of_every_row_is_compressed_from_a_shared_prefill(asked):
    model, batch = asked
    ways = {name: kept(name) for name in ("snapkv", "every", "every-drawn")}
    together = answer(model, batch, ways, 4)
    for name, way in ways.items():
        whole = batch.inputs["input_ids"].shape[1]
        alone = answer(model, Batch(batch.index, batch.inputs, cut=whole), {name: way}, 4)
        assert together[name] == alone[name]


def test_random_heads_of_every_row_are_drawn_for_every_page_and_rate_as_their_method_does(asked):
    model, batch = asked
    policy = kept("every-drawn").policy.for_pages(shape_of(model), batch.index)
    assert isinstance(policy, PerRow) and policy.selector.every_row and policy.compresses
    assert [type(row) for row in policy.rows] == [EveryDrawn] * 2


# Where a name is a role: the full cache and sparsemm are what all others are held against.
ROLES = {"evaluate/rows.py", "params", "policies/__init__.py", "profiling", "registry", "report"}


def comparisons(source: str) -> list[int]:
    """Lines that compare something with the name of a method."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(one, ast.Constant) and one.value in METHODS for one in ast.walk(node))
    ]


def test_no_code_asks_for_the_name_of_a_method_where_its_class_knows():
    assert comparisons("way.method == 'h2o'") == [1]
    result = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not any(name == role or name.startswith(f"{role}/") for role in ROLES):
            result += [f"{name}:{line}" for line in comparisons(path.read_text())]
    assert result == []
