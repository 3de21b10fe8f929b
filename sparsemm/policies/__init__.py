"""Methods: how many slots every KV head gets (a policy, one file each), and which positions it keeps (a selector).

A method is its own configuration: `SparseMM(scores, budget=256, rho=0.1)`. `METHODS` is the one list of them; params,
commands, report and docs derive names and options from it, and `make_policy` turns a name and options into a method.
This module imports no torch: a command that reads params.yaml starts fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from sparsemm.errors import BudgetError

if TYPE_CHECKING:
    from sparsemm.policies.policy import Policy

# Name -> class, or where it is. A new method is its file, its test, a line here, and a row in docs/cache.md.
METHODS: dict[str, str | type[Policy]] = {
    "full": "full.Full",
    "sparsemm": "sparsemm.SparseMM",
    "snapkv": "snapkv.SnapKV",
    "pyramidkv": "pyramidkv.PyramidKV",
    "adakv": "adakv.AdaKV",
    "random": "random_heads.RandomHeads",
    "streaming": "streaming.Streaming",
    "h2o": "h2o.H2O",
    "sparsemm-adaptive": "sparsemm_adaptive.SparseMMAdaptive",
}


def policy_class(method: str) -> type[Policy]:
    """The class of a method, which says what is particular about it: ask it instead of comparing names.

    Raises:
        BudgetError: if the name is unknown.
    """
    if method not in METHODS:
        near = "".join(f", did you mean {name}?" for name in get_close_matches(str(method), METHODS, 1))
        raise BudgetError(f"method {method!r} is unknown{near}", hint=f"use one of {', '.join(METHODS)}")
    kind = METHODS[method]
    if isinstance(kind, str):
        module, _, name = kind.partition(".")
        kind = getattr(import_module(f"sparsemm.policies.{module}"), name)
    return cast("type[Policy]", kind)


def budgets_of(method: str, budgets: Iterable[int]) -> list[int | None]:
    """The budgets to run a method with: all of them, or None alone for one that evicts nothing."""
    return list(budgets) if policy_class(method).compresses else [None]


def _selector_options(kind: type[Policy]) -> set[str]:
    selector = next(f for f in fields(kind) if f.name == "selector").default
    return {f.name for f in fields(selector)}  # type: ignore[arg-type]


def method_options(method: str) -> set[str]:
    """Names of a method's options, its selector's included; budget and scores are no options.

    Raises:
        BudgetError: if the method is unknown.
    """
    kind = policy_class(method)
    own = {f.name for f in fields(kind) if f.init and not f.name.startswith("_")}
    return own - {"budget", "scores", "shape"} | _selector_options(kind)


def make_policy(method: str, budget: int | None = None, scores: Any = None, **options: Any) -> Policy:
    """The method of a name, configured; the short form of its class.

    Args:
        method: a name of `METHODS`.
        budget: mean slots per KV head, window included; ignored by "full".
        scores: head scores for the methods that need them, ignored by the others.
        options: of `method_options`.

    Raises:
        BudgetError: if the name or an option is unknown, or a value is impossible.
    """
    kind, known = policy_class(method), method_options(method)
    if unknown := sorted(set(options) - known):
        hint = f"{method} has {', '.join(sorted(known))}"
        raise BudgetError(f"{method} has no option {', '.join(unknown)}", hint=hint)
    of_selector = {name: options.pop(name) for name in _selector_options(kind) & set(options)}
    if kind.needs_scores:
        options["scores"] = scores
    policy = kind(budget=0 if budget is None else budget, **options)
    return replace(policy, selector=replace(policy.selector, **of_selector)) if of_selector else policy


def make_policy_from(method: str, budget: int | None, scores: Any, settings: Mapping[str, Any]) -> Policy:
    """`make_policy` with those of the settings that the method has: one set of settings serves several methods."""
    known = method_options(method)
    return make_policy(method, budget, scores, **{name: value for name, value in settings.items() if name in known})
