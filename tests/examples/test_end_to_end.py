"""The example that starts everything: how it waits. A run of it takes minutes, and is left to people."""

from __future__ import annotations

import subprocess

import pytest

from examples import end_to_end
from sparsemm.errors import RegistryError


def test_waiting_for_a_champion_starts_no_process(monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("a process was started")

    asked = []

    def resolve(source, tracking_uri):
        asked.append((source, tracking_uri))
        raise RegistryError("no such version in the registry")

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(end_to_end, "resolve", resolve)
    assert end_to_end.champion("http://127.0.0.1:9") is None
    assert asked == [("models:/visual-heads.tiny-qwen2-vl@champion", "http://127.0.0.1:9")]


def test_what_does_not_come_in_time_ends_the_example(monkeypatch):
    with pytest.raises(SystemExit, match="a champion: not within 0 s"):
        end_to_end.wait_for("a champion", lambda: None, seconds=0)


def test_long_waiting_is_heard_of(monkeypatch, capsys):
    monkeypatch.setattr(end_to_end, "NEWS", 0.2)
    answers = iter([None, None, "there"])
    assert end_to_end.wait_for("a champion", lambda: next(answers)) == "there"
    assert "a champion: not yet after" in capsys.readouterr().out


def test_the_pages_that_stay_open_are_printed(monkeypatch, capsys, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("signal.pause", interrupt)
    with pytest.raises(KeyboardInterrupt):
        end_to_end.stay(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")
    shown = capsys.readouterr().out
    for page in ("1/runs", "2/#/models/visual-heads.tiny-qwen2-vl", "3", "3/metrics"):
        assert f"http://127.0.0.1:{page}\n" in shown
    assert str(tmp_path / "data" / "incoming" / "watched") in shown
