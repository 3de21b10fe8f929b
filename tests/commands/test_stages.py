"""Every stage explains itself."""

from __future__ import annotations

import pytest

from sparsemm.cli import main
from sparsemm.commands.stages import MODEL_STAGES
from sparsemm.params import load_params


@pytest.mark.parametrize("name", ["download", *MODEL_STAGES, "report"])
def test_help_has_an_example_that_would_run(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0 and "artifacts/" in shown
    command, *key = shown.partition("example: sparsemm ")[2].split()
    params = load_params()
    assert command == name and all(one in params.models or one in params.datasets for one in key)


@pytest.mark.parametrize("count", ["0", "-2"])
def test_a_chase_needs_a_process(count, capsys):
    assert main(["chase", "tiny-qwen2-vl", "--processes", count]) == 1
    assert f"--processes: {count} processes compute nothing" in capsys.readouterr().err
