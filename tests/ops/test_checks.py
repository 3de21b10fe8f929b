"""What the operations refuse, through their functions and through torch.ops, with the library and without."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
import torch

from sparsemm.errors import CacheError
from sparsemm.ops import library
from tests.ops.operations import arguments, needs_compiler


def changed(what, change):
    return lambda a: a.__setitem__(what, change(a[what]))


def at(what, index, value):
    return lambda a: a[what].__setitem__(index, value)


def strided(t):
    return torch.stack([t, t], -1)[..., 0]


BAD = [
    ("ragged_decode", changed("query", torch.Tensor.half), "dtypes"),
    ("ragged_decode", changed("keys", torch.Tensor.int), "dtypes"),
    ("ragged_decode", changed("query", strided), "contiguous"),
    ("ragged_decode", changed("keys", strided), "contiguous"),
    ("ragged_decode", changed("query", lambda t: t[..., :7].contiguous()), "head dimension"),
    ("ragged_decode", changed("query", lambda t: t[0]), "is not"),
    ("ragged_decode", changed("query", lambda t: t[:, :3].contiguous()), "do not match a query"),
    ("ragged_decode", changed("query", lambda t: t[:0]), "do not match a query"),
    ("ragged_decode", changed("values", lambda t: t[1:]), r"\(rows, D\)"),
    ("ragged_decode", changed("query", lambda t: t.to("meta")), "devices"),
    ("ragged_decode", changed("starts", torch.Tensor.int), "int64"),
    ("ragged_decode", changed("lengths", lambda t: t[:3]), "int64"),
    ("ragged_decode", changed("lengths", lambda t: strided(t)), "contiguous"),
    ("ragged_decode", at("starts", 1, -1), "segment 1: its start or length leaves"),
    ("ragged_decode", at("lengths", 2, -1), "segment 2: its start or length leaves"),
    ("ragged_decode", at("lengths", 3, 6), "segment 3: its start or length leaves"),
    ("ragged_decode", at("starts", 0, 2**63 - 1), "segment 0: its start or length leaves"),
    ("ragged_decode", at("lengths", 0, 2**63 - 1), "segment 0: its start or length leaves"),
    ("append", changed("new_keys", torch.Tensor.double), "dtypes"),
    ("append", changed("new_values", lambda t: t[:3]), "new rows"),
    ("append", changed("new_values", strided), "new rows"),
    ("append", at("lengths", 1, 4), "segment 1: it has no room"),
    ("append", at("lengths", 3, 5), "segment 3: it has no room"),
    ("append", at("lengths", 0, -1), "segment 0: it has no room"),
    ("append", at("starts", 0, -1), "segment 0: it has no room"),
    ("append", at("starts", 3, 99), "segment 2: it has no room"),
    ("append", at("starts", 0, 2**63 - 1), "segment 0: it has no room"),
    ("compact", changed("full_keys", torch.Tensor.bfloat16), "dtypes"),
    ("compact", changed("full_values", lambda t: t[:, :1]), "do not fit"),
    ("compact", changed("keep", lambda t: t[..., :2]), "do not fit"),
    ("compact", changed("keep", torch.Tensor.byte), "keep is not bool"),
    ("compact", changed("keep", strided), "keep is not bool"),
    ("compact", changed("full_keys", strided), "last dimension"),
    ("compact", changed("starts", lambda t: t[:3]), "segments for"),
    ("compact", at("keep", (1, 0), True), "segment 2: its selected rows do not fit"),
    ("compact", at("starts", 0, -1), "segment 0: its selected rows do not fit"),
    ("compact", at("starts", 3, 99), "segment 2: its selected rows do not fit|segment 3: its selected rows do not fit"),
    ("observe", changed("query", torch.Tensor.half), "dtypes"),
    ("observe", changed("keys", torch.Tensor.long), "dtypes"),
    ("observe", changed("query", lambda t: t[..., :7]), "do not end with"),
    ("observe", changed("query", lambda t: t[:, :3]), "3 query heads for 2"),
    ("observe", changed("keys", lambda t: t[:, :0]), "4 query heads for 0"),
    ("observe", changed("query", lambda t: t[:1]), "is not the last rows"),
    ("observe", changed("query", lambda t: t[:, :, :0]), "is not the last rows"),
    ("observe", changed("keys", lambda t: t[:, :, :1]), "is not the last rows"),
    ("observe", changed("query", lambda t: t.to("meta")), "devices"),
    ("observe", changed("valid", lambda t: t[:, :8]), "valid is"),
    ("observe", changed("valid", torch.Tensor.byte), "valid is"),
    ("observe", changed("pooling", lambda _: 4), "pooling is 4"),
    ("observe", changed("pooling", lambda _: -1), "pooling is -1"),
    ("argmax_rows", changed("keys", torch.Tensor.double), "dtypes"),
    ("argmax_rows", changed("query", lambda t: t[:3]), "3 query heads for 2"),
    ("argmax_rows", changed("query", lambda t: t[0]), "do not end with"),
    ("argmax_rows", changed("keys", lambda t: t[None]), "are not"),
    ("argmax_rows", changed("begins", torch.Tensor.int), "int64"),
    ("argmax_rows", changed("ends", lambda t: t[:2]), "int64"),
    ("argmax_rows", at("begins", 1, -1), "row 1: its range exceeds 9 keys"),
    ("argmax_rows", at("ends", 2, 10), "row 2: its range exceeds 9 keys"),
    ("causal_attention", changed("query", torch.Tensor.half), "dtypes"),
    ("causal_attention", changed("values", torch.Tensor.half), "do not belong to keys"),
    ("causal_attention", changed("values", lambda t: t[:, :, 1:]), "do not belong to keys"),
    ("causal_attention", changed("query", lambda t: t[:, :3]), "3 query heads for 2"),
    ("causal_attention", changed("query", lambda t: t[:, :, 1:]), "are not"),
    ("causal_attention", changed("query", lambda t: t[0]), "are not"),
    ("causal_attention", changed("firsts", torch.Tensor.int), "int64"),
    ("causal_attention", changed("stops", lambda t: t[:1]), "int64"),
    ("causal_attention", changed("stops", lambda t: t.to("meta")), "device"),
    ("causal_attention", at("firsts", 0, -1), "sample 0: its tokens are not a range of 9 positions"),
    ("causal_attention", at("stops", 1, 10), "sample 1: its tokens are not a range"),
    ("causal_attention", at("stops", 1, 2), "sample 1: its tokens are not a range"),
    ("causal_attention", at("stops", 0, 2**63 - 1), "sample 0: its tokens are not a range"),
]


OPERATIONS = tuple(dict.fromkeys(op for op, _, _ in BAD))


def refusal(call, given):
    """The message of the CacheError that a call raises, or None where it raises none."""
    try:
        call(*given.values())
    except CacheError as error:
        return str(error)
    return None


@pytest.mark.parametrize("op", OPERATIONS)
def test_what_does_not_fit_is_refused_and_nothing_is_written(both, op):
    calls = getattr(import_module(f"sparsemm.ops.{op}"), op), getattr(torch.ops.sparsemm, op)
    cases = [(damage, match) for name, damage, match in BAD if name == op]
    failures = []
    for number, (damage, match) in enumerate(cases):
        for call in calls:
            given = arguments(op)
            damage(given)
            slab = {name: given[name] for name in ("keys", "values") if name in given and not given[name].is_meta}
            before = {name: tensor.clone() for name, tensor in slab.items()}
            message = refusal(call, given)
            if message is None or not re.search(match, message):
                failures.append(f"case {number} of {op}, {call}: {message!r} is not {match!r}")
            failures += [
                f"case {number} of {op}, {call}: {name} changed"
                for name, was in before.items()
                if not torch.equal(given[name], was)
            ]
    assert cases and not failures, "\n".join(failures)


def output_of(op, given):
    query, keys = given.get("query"), given.get("keys")
    return {
        "ragged_decode": lambda: torch.empty_like(query),
        "observe": lambda: torch.empty(keys.shape[:3], dtype=torch.float32),
        "argmax_rows": lambda: torch.empty(query.shape[:2], dtype=torch.int64),
        "causal_attention": lambda: torch.empty(query.transpose(1, 2).shape, dtype=torch.float32),
    }.get(op, lambda: None)()


def addressed(op, given, output):
    """What compiled code would be called with."""
    given = dict(given)
    last = [given.pop(name) for name in ("pooling", "scaling") if name in given]
    outputs = [] if output is None else [output]
    return import_module(f"sparsemm.ops.{op}").c_arguments(*given.values(), *outputs, *last)


@needs_compiler
@pytest.mark.parametrize("op", OPERATIONS)
def test_no_address_of_a_tensor_that_does_not_fit_reaches_compiled_code(fresh_library, monkeypatch, op):
    module, calls = import_module(f"sparsemm.ops.{op}"), []
    monkeypatch.setattr(library.library(), f"sparsemm_{op}", lambda *_: calls.append(op) or library.DONE)
    call = getattr(module, "decode", module.on_cpu)
    call(*arguments(op).values())
    assert calls == [op]
    cases = [damage for name, damage, match in BAD if name == op and not re.match("(seg|row|sam)", match)]
    given = [arguments(op) for _ in cases]
    for damage, one in zip(cases, given, strict=True):
        damage(one)
    accepted = [number for number, one in enumerate(given) if refusal(call, one) is None]
    assert cases and not accepted and calls == [op]


@pytest.mark.parametrize("op", ["ragged_decode", "observe", "argmax_rows", "causal_attention"])
def test_results_of_another_dtype_shape_or_device_are_refused(op):
    given = arguments(op)
    assert addressed(op, given, output_of(op, given))
    for damage in (
        torch.Tensor.bfloat16,
        torch.Tensor.double,
        lambda t: t[:1],
        strided,
        lambda t: t.to("meta"),
        torch.Tensor.int,
    ):
        with pytest.raises(CacheError, match="output is"):
            addressed(op, given, damage(output_of(op, given)))


@pytest.mark.parametrize("op", ["ragged_decode", "append", "compact", "observe", "argmax_rows", "causal_attention"])
def test_memory_of_another_device_is_not_handed_over(op):
    given = arguments(op)
    with pytest.raises(CacheError, match="not for compiled code of cuda"):
        library.call_cuda(op, torch.device("cpu"), *addressed(op, given, output_of(op, given)))


def test_scratch_memory_is_checked_too():
    room = torch.empty(8, dtype=torch.float32)
    assert library.checked("x", "room", room, torch.float32, (8,), room.device) is room
    for bad in (room.half(), room[:7], room.to("meta"), torch.empty(16, dtype=torch.float32)[::2]):
        with pytest.raises(CacheError, match="room is"):
            library.checked("x", "room", bad, torch.float32, (8,), room.device)


def test_a_tensor_that_is_not_what_the_signature_says_is_refused(fresh_library):
    given = list(addressed("append", arguments("append"), None))
    for at, damage in ((0, torch.Tensor.double), (2, lambda t: t.to("meta")), (4, torch.Tensor.int), (3, strided)):
        wrong = [*given]
        wrong[at] = damage(wrong[at])
        with pytest.raises(CacheError, match="C\\+\\+ takes"):
            library.call_cpu("append", *wrong)
