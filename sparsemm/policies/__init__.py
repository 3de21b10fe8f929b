"""Methods: how many slots every KV head gets (a policy, one file each), and which positions it keeps (a selector).

A method is its own configuration: `SparseMM(scores, budget=256, rho=0.1, selector=Peak())`. `METHODS` lists the
policies, each with the selector that its paper has, and `SELECTORS` what any of them can have instead: the name
`sparsemm+peak` is the policy `sparsemm` with the selector `peak`. Params, commands, report and docs derive names and
options from these two lists, and `make_policy` turns a name and options into a method.
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
    from sparsemm.policies.selector import Selector

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
    "headkv": "headkv.HeadKV",
    "vl-cache": "vl_cache.VLCache",
    "meda": "meda.MEDA",
    "duo": "duo.Duo",
    "fastv": "fastv.FastV",
    "look-m": "look_m.LookM",
    "elasticcache": "elasticcache.ElasticCache",
}

# The same for selectors: a new one is its file, its test, a line here, and a row in docs/cache.md.
SELECTORS: dict[str, str | type[Selector]] = {
    "snapkv": "window_attention.WindowAttention",
    "unpooled": "window_attention.UnpooledAttention",
    "peak": "peak.Peak",
    "echo": "echo.Echo",
    "blend-echo": "blend.BlendEcho",
    "blend-peak": "blend.BlendPeak",
    "critical": "critical.Critical",
    "mixkv": "mixkv.MixKV",
    "bacon": "bacon.Bacon",
    "tova": "tova.LastRow",
    "keydiff": "keydiff.KeyDiff",
    "knorm": "knorm.KeyNorm",
    "expected": "expected.ExpectedAttention",
    "accumulated": "h2o.AccumulatedAttention",
    "recency": "streaming.Recency",
    "second-layer": "fastv.SecondLayer",
    "random-visual": "random_visual.RandomVisual",
    "random-visual-per-head": "random_visual.RandomVisualPerHead",
    "behind-image": "behind_image.BehindImage",
    "kvzip": "kvzip.KVzip",
    "merge-similar": "look_m.MergeSimilar",
    "merge-nearest": "elasticcache.MergeNearest",
}


def _checked(name: str, known: Iterable[str], what: str) -> str:
    if name not in known:
        near = "".join(f", did you mean {one}?" for one in get_close_matches(name, known, 1))
        raise BudgetError(f"{what} {name!r} is unknown{near}", hint=f"use one of {', '.join(known)}")
    return name


def parts(method: str) -> tuple[str, str | None]:
    """Returns the names of a method's policy and of its selector, None for the policy's own selector.

    Raises:
        BudgetError: if one of them is unknown, or the policy keeps everything and leaves nothing to select.
    """
    policy, plus, selector = str(method).partition("+")
    _checked(policy, METHODS, "method")
    if not plus:
        return policy, None
    if policy == "full":
        raise BudgetError(f"method {method!r}: full keeps every position", hint="use full, or another policy")
    return policy, _checked(selector, SELECTORS, "selector")


def is_method(name: str) -> bool:
    """Returns whether this is the name of a method, with or without a selector."""
    try:
        return bool(parts(name))
    except BudgetError:
        return False


def _loaded(where: str | type) -> Any:
    if isinstance(where, str):
        module, _, name = where.partition(".")
        return getattr(import_module(f"sparsemm.policies.{module}"), name)
    return where


def policy_class(method: str) -> type[Policy]:
    """Returns the class of a method's policy. Ask its attributes what is particular about it; do not compare names.

    Raises:
        BudgetError: if the name is unknown.
    """
    return cast("type[Policy]", _loaded(METHODS[parts(method)[0]]))


def selector_of(method: str) -> Selector:
    """Returns a method's selector with default options; its attributes say what it needs.

    Raises:
        BudgetError: if the name is unknown.
    """
    _, name = parts(method)
    if name is None:
        return cast("Selector", next(f for f in fields(policy_class(method)) if f.name == "selector").default)
    return cast("Selector", _loaded(SELECTORS[name])())


def summary_of(method: str) -> str:
    """Returns the line that explains a method in the report, without a full stop; empty for the full cache.

    Raises:
        BudgetError: if the name is unknown.
    """
    policy, selector = parts(method)
    if selector is None:
        return policy_class(method).summary.removesuffix(".")
    return f"the slots of {policy}, filled with {selector_of(method).summary}"


def is_drawn(method: str) -> bool:
    """Returns whether a method draws head scores or positions at random.

    Raises:
        BudgetError: if the name is unknown.
    """
    return policy_class(method).drawn or selector_of(method).drawn


def budgets_of(method: str, budgets: Iterable[int]) -> list[int | None]:
    """Returns the budgets to run a method with: all of them, or None alone for a method that evicts nothing."""
    return list(budgets) if policy_class(method).compresses else [None]


def _names(one: Any) -> set[str]:
    return {f.name for f in fields(one) if f.init and not f.name.startswith("_")}


def method_options(method: str) -> set[str]:
    """Returns the names of a method's options, those of its selector included; budget and scores are arguments.

    A method that names its selector, such as `sparsemm+peak`, has no option `selector`.

    Raises:
        BudgetError: if the method is unknown.
    """
    own = _names(policy_class(method)) - {"budget", "scores", "shape"}
    return (own if parts(method)[1] is None else own - {"selector"}) | _names(selector_of(method))


def every_option() -> set[str]:
    """Returns the names of the options of all methods with all selectors."""
    return set[str]().union(*map(method_options, METHODS), *(_names(_loaded(one)) for one in SELECTORS.values()))


def make_policy(method: str, budget: int | None = None, scores: Any = None, **options: Any) -> Policy:
    """Returns a configured method by its name: the short form of its class.

    Args:
        method: a name of `METHODS`, alone or with one of `SELECTORS` behind a plus.
        budget: mean slots per KV head, window included; ignored by "full".
        scores: head scores for the methods that need them, ignored by the others.
        options: of `method_options`.

    Raises:
        BudgetError: if the name or an option is unknown, or a value is impossible.
    """
    kind, known = policy_class(method), method_options(method)
    selector = options.get("selector", selector_of(method)) if "selector" in known else selector_of(method)
    known = known - _names(selector_of(method)) | _names(selector)
    if unknown := sorted(set(options) - known):
        hint = f"{method} has {', '.join(sorted(known))}"
        raise BudgetError(f"{method} has no option {', '.join(unknown)}", hint=hint)
    of_selector = {name: options[name] for name in _names(selector) & set(options)}
    options = {name: value for name, value in options.items() if name in _names(kind)}  # both may have a seed
    options["selector"] = replace(selector, **of_selector)
    if kind.needs_scores:
        options["scores"] = scores
    return kind(budget=0 if budget is None else budget, **options)


def make_policy_from(method: str, budget: int | None, scores: Any, settings: Mapping[str, Any]) -> Policy:
    """Returns `make_policy` with those of the settings that the method has, so that several methods share settings."""
    known = method_options(method)
    return make_policy(method, budget, scores, **{name: value for name, value in settings.items() if name in known})
