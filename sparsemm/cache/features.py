"""Reads from the source code of a model's attention layers which features an attention function must support."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from textwrap import dedent
from typing import Any

import torch

PLAIN = {"attention_mask", "dropout", "is_causal", "key", "output_attentions", "position_ids", "query", "scaling"}
PLAIN |= {"sliding_window", "value"}  # arguments that change no weight, or that repeat what layers and masks say


@dataclass(frozen=True)
class Call:
    """What a layer does with the keys and values that its cache returns.

    Attributes:
        looked_up: whether they go to a function that transformers looks up by name.
        elsewhere: whether anything else uses them, too.
        extra: arguments of that function beyond `PLAIN`, each with the path of the layer's attribute it comes from.
    """

    looked_up: bool
    elsewhere: bool
    extra: tuple[tuple[str, tuple[str, ...]], ...]


def _path(node: ast.expr) -> tuple[str, ...]:
    """Returns ("a", "b") for the expression `self.a.b`, and () for other expressions."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return tuple(names) if isinstance(node, ast.Name) and node.id == "self" else ()


@cache
def cached_call(forward: Callable[..., Any]) -> Call | None:
    """Returns what a forward does with its cache's keys and values; None if it has no cache, or no source code."""
    try:
        tree = ast.parse(dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):
        return None
    nodes = list(ast.walk(tree))
    updates = [
        node
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "update"
        and isinstance(node.targets[0], ast.Tuple)
    ]
    if not updates:
        return None
    cached = {name.id for node in updates for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "attention_interface"]
    taken = {id(name) for call in calls[:1] for name in [*call.args, *(word.value for word in call.keywords)]}
    begin = min(node.end_lineno or 0 for node in updates)
    elsewhere = any(
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in cached
        and node.lineno > begin and id(node) not in taken
        for node in nodes
    )  # fmt: skip
    words = [word for call in calls for word in call.keywords if word.arg is not None and word.arg not in PLAIN]
    return Call(bool(calls), elsewhere, tuple((str(word.arg), _path(word.value)) for word in words))


def unsupported(module: torch.nn.Module, call: Call) -> list[str]:
    """Lists the features of one attention layer that `ragged_attention` does not support."""
    names = []
    for name, path in call.extra:
        value: Any = module if path else True
        for attribute in path:
            value = getattr(value, attribute, None)
        if value is not None:
            names.append(name)
    if call.elsewhere:
        names.append("keys and values that are changed after the cache returned them")
    if not getattr(module, "is_causal", True):
        names.append("tokens that attend to later ones")
    return names
