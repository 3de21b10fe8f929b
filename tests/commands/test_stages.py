"""Every stage explains itself."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(
    ("command", "option", "reason"),
    [
        ("chase", "--processes", "0 processes are too few"),
        ("chase", "--processes", "-2 processes are too few"),
        ("evaluate", "--limit", "0 documents are too few"),
    ],
)
def test_a_count_of_nothing_is_refused(command, option, reason, capsys):
    assert main([command, "tiny-qwen2-vl", option, reason.split()[0]]) == 1
    assert capsys.readouterr().err == f"sparsemm: {option}: {reason} (use at least 1)\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--text", "--dataset", "small-type"], "--dataset: a chase over text has one process and no data set"),
        (["--text", "--processes", "2"], "--processes: a chase over text"),
        (["--text", "--shards", "0/2"], "--shards: a chase over text"),
        (["--prompts", "3"], "--prompts: images have no prompts to count (use it with --text)"),
        (["--text", "--prompts", "0"], "text: 0 texts of 100 words"),
    ],
)
def test_what_does_not_go_with_a_chase_over_text_is_refused(options, reason, capsys):
    assert main(["chase", "tiny-qwen2-vl", *options]) == 1
    assert capsys.readouterr().err.startswith(f"sparsemm: {reason}")


@pytest.mark.parametrize("command", [["params"], ["align", "gone"], ["chase", "gone"]])
def test_a_checkpoint_that_is_not_there_is_told_before_anything_runs(command, capsys, tmp_path):
    path = tmp_path / "params.yaml"
    entry = "  gone: {checkpoint: data/checkpoints/nothing, family: qwen2_vl}\n"
    path.write_text(Path("params.yaml").read_text(encoding="utf-8").replace("models:\n", f"models:\n{entry}"))
    assert main(["--params", str(path), *command]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sparsemm: {path}: models.gone.checkpoint: no folder data/checkpoints/nothing (")
    assert "`sparsemm models remove gone`" in said
