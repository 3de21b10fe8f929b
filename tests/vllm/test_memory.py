"""How many requests fit, against counting them in one by one; needs no vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from sparsemm.cli import main
from sparsemm.errors import BudgetError
from sparsemm.vllm.memory import fits, parse_bytes
from sparsemm.vllm.plan import Columns, Plan, like_layers

ROOT = Path(__file__).parents[2]
CONFIG = LlamaConfig(hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2)
MEMORY, PROMPT, NEW, SIZE, ROW = 3_000_000, 300, 40, 16, 2 * 16 * 2


@pytest.mark.parametrize("method", ["snapkv", "pyramidkv", "random", "streaming"])
def test_as_many_fit_as_can_be_counted_in(method):
    for row in fits(CONFIG, method, 48, None, {"window": 8}, PROMPT, NEW, MEMORY):
        plan = Plan(method, 2, tuple(range(6)), 48, 8, (), None, False, 1)
        buckets = like_layers(plan, row.groups)
        columns = [Columns.of(plan, bucket, SIZE, PROMPT) for bucket in buckets]
        block = 6 // row.groups * 2 * SIZE * ROW
        free, count = MEMORY // block, 0
        while free >= sum(each.whole for each in columns):  # its prompt has to fit before it is compressed
            free -= sum(each.held(NEW) for each in columns)
            count += 1
        assert row.compressed == count
        assert row.whole == MEMORY // (6 * 2 * SIZE * ROW * -(-(PROMPT + NEW) // SIZE))
        assert row.bytes_held == block * sum(each.held(NEW) for each in columns)


def test_full_attention_fits_as_often_as_it_does():
    row = fits(CONFIG, "full", None, None, {}, PROMPT, NEW, MEMORY)[0]
    assert row.compressed == row.whole and row.bytes_held == row.bytes_whole


def test_amounts_of_memory():
    assert [parse_bytes(text) for text in ("80G", "1.5m", "1000")] == [80 << 30, 3 << 19, 1000]
    for text in ("", "G", "-1", "much"):
        with pytest.raises(BudgetError, match="is no amount of memory"):
            parse_bytes(text)


def test_the_command(tmp_path, capsys):
    CONFIG.save_pretrained(tmp_path)
    common = ["plan-memory", "--model", str(tmp_path), "--budget", "48", "--context", "300", "--memory", "3M"]
    assert main([*common, "--method", "snapkv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("full cache: ") and [line.split()[0] for line in lines[2:]] == ["1", "2", "3", "6"]
    assert main(common) == 1
    assert "sparsemm needs head scores (pass --scores" in capsys.readouterr().err
    assert main([*common[:2], str(tmp_path / "none"), *common[3:]]) == 1
    assert "config cannot be read" in capsys.readouterr().err


def test_the_table_of_the_docs_is_what_the_command_prints(tmp_path, capsys):
    """For the sizes of Qwen2-VL-7B, whose config is not in this repository."""
    sizes = dict(num_hidden_layers=28, hidden_size=3584, num_attention_heads=28, num_key_value_heads=4)
    LlamaConfig(**sizes).save_pretrained(tmp_path)
    options = "--method snapkv --budget 256 --context 2048 --memory 40G"
    assert main(["plan-memory", "--model", str(tmp_path), *options.split()]) == 0
    document = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    assert f"--model Qwen/Qwen2-VL-7B-Instruct {options}\n" in document
    assert f"<!-- plan-memory -->\n```\n{capsys.readouterr().out}```\n<!-- end -->" in document
