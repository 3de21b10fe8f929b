"""Adds and removes models in a params file without changing anything else, comments included."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from sparsemm.errors import ParamsError
from sparsemm.files import atomic_path
from sparsemm.params import ModelParams, parse_params, read_text
from sparsemm.params.models import OVERRIDDEN

KEPT = (*OVERRIDDEN, "device_map", "load_in")  # of an entry that is added again


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that quotes text like the revision 12e4567890123456, which DVC's YAML 1.2 reads as a number.

    Lists stand on one line.
    """

    def represent_sequence(
        self, tag: str, sequence: Iterable[object], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        node: yaml.SequenceNode = super().represent_sequence(tag, sequence, flow_style=True)
        return node


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[0-9]+([eE][0-9]+)?$"), list("0123456789"))


def _models_node(text: str, where: str) -> tuple[yaml.MappingNode, yaml.Node]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ParamsError(f"not YAML: {error}", where=where) from error
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        if key.value == "models" and isinstance(value, yaml.MappingNode):
            return value, key
    raise ParamsError("no `models`", where=where)


def _save(path: Path, text: str) -> None:
    parse_params(text, str(path))  # an invalid file is never written
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def add_entry(path: str | Path, key: str, entry: ModelParams) -> bool:
    """Writes an entry under `models` of a params file. Comments elsewhere are kept.

    An existing entry is replaced, but for what only its author can have chosen: overrides, `device_map`, `load_in`.

    Returns:
        whether anything changed.

    Raises:
        ParamsError: if the file or the key is not valid.
    """
    path = Path(path)
    text = read_text(path)
    params = parse_params(text, str(path))
    if key in params.models:
        old = params.models[key]
        entry = entry.model_copy(update={name: getattr(old, name) for name in KEPT if getattr(old, name)})
    if params.models.get(key) == entry:
        return False
    if key in params.models:
        text = _without(text, key, str(path))
    node, name = _models_node(text, str(path))
    values = entry.model_dump(exclude_defaults=False)
    values = {k: v for k, v in values.items() if v not in (None, "", {})}
    body = yaml.dump({key: values}, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    lines = text.splitlines(keepends=True)
    block = ["  " + line for line in body.splitlines(keepends=True)]
    if not node.value:  # `models: {}`
        lines[name.start_mark.line : node.end_mark.line + 1] = ["models:\n"]
        at = name.start_mark.line + 1
    else:
        at = _content_end(lines, node.value[0][0].start_mark.line, node.end_mark.line)
    if at and not lines[at - 1].endswith("\n"):
        lines[at - 1] += "\n"
    lines[at:at] = block
    _save(path, "".join(lines))
    return True


def _content_end(lines: list[str], first: int, end: int) -> int:
    """Returns the index after the last line of [first, end) that is neither blank nor a comment."""
    end = min(end, len(lines))
    while end > first and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end


def _without(text: str, key: str, where: str) -> str:
    node, name = _models_node(text, where)
    lines = text.splitlines(keepends=True)
    if node.flow_style:
        raise ParamsError("`models` is written in flow style", where=where, hint="write one entry per line block")
    for entry_key, value in node.value:
        if entry_key.value == key:
            first = entry_key.start_mark.line
            last = max(_content_end(lines, first, value.end_mark.line), first + 1)
            del lines[first:last]
            if len(node.value) == 1:
                lines[name.start_mark.line] = "models: {}\n"
            return "".join(lines)
    keys = ", ".join(str(entry_key.value) for entry_key, _ in node.value) or "none yet"
    raise ParamsError(f"no model {key!r}", where=f"{where}: models", hint=f"known: {keys}")


def remove_entry(path: str | Path, key: str) -> None:
    """Removes a model's entry from a params file; its artifacts stay.

    Raises ParamsError if the file is not valid, or there is no such entry.
    """
    path = Path(path)
    # The file is checked only without the entry, which may be the one thing that is wrong with it.
    _save(path, _without(read_text(path), key, str(path)))
