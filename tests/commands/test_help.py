"""Every command that is no stage has an example, and the example parses."""

from __future__ import annotations

import pytest

from sparsemm.cli import _parser, main

COMMANDS = [
    *(["models", one] for one in ("add", "list", "remove")),
    *(["scores", one] for one in ("show", "diff", "export", "import")),
    *([one] for one in ("bench", "publish", "promote", "rollback", "lookup", "doctor", "params")),
    ["registry", "serve"],
]
GROUPS = [[], ["models"], ["scores"], ["registry"], ["flows"]]


@pytest.mark.parametrize("command", COMMANDS + GROUPS, ids=" ".join)
def test_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    example = " ".join(capsys.readouterr().out.split()).partition("example: sparsemm ")[2].partition(" | ")[0].split()
    assert example[: len(command)] == command
    assert command == ["flows"] or callable(_parser().parse_args(example).run)  # flows has a parser of its own
