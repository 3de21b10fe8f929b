"""The lock: one holder, taken over from the dead, never from the living."""

from __future__ import annotations

import time

import pytest

from sparsemm.errors import RegistryError
from sparsemm.registry.client import connect, default_store
from sparsemm.registry.lease import lease

NAME = "visual-heads.m"


@pytest.fixture
def store(local):
    uri = default_store(local().root)
    return connect(uri), uri


def left_behind(client, owner="another-host/1", seconds=60.0):
    tags = {"owner": owner, "token": "t", "expires": repr(time.time() + seconds)}
    client.create_registered_model(f"{NAME}.lock", tags=tags)


def locks(client):
    return [model.name for model in client.search_registered_models()]


def test_held_inside_gone_outside_also_after_an_error(store):
    client, uri = store
    with pytest.raises(ZeroDivisionError), lease(client, uri, NAME) as held:
        held.check()
        assert locks(client) == [f"{NAME}.lock"]
        raise ZeroDivisionError
    assert locks(client) == []


def test_a_living_holder_on_another_host_is_waited_for_and_named(store):
    client, uri = store
    left_behind(client)
    with pytest.raises(RegistryError, match="held by another-host/1"), lease(client, uri, NAME, patience=0.2):
        pass
    assert locks(client) == [f"{NAME}.lock"]


def test_a_silent_holder_on_another_host_is_taken_over_and_notices(store):
    client, uri = store
    with lease(client, uri, NAME) as first:
        owner = first.owner
        client.set_registered_model_tag(first.name, "owner", "another-host/1")
        client.set_registered_model_tag(first.name, "expires", "1.0")
        # Another host has another lock file, as another address has here.
        with lease(client, "http://elsewhere", NAME, patience=30) as second:
            assert second.token != first.token
            with pytest.raises(RegistryError, match="lost"):
                first.check()
            second.check()
    assert owner.split("/")[1] and locks(client) == []


def test_what_a_dead_process_of_this_host_left_is_taken_over_at_once(store):
    client, uri = store
    with lease(client, uri, NAME) as held:
        owner = held.owner
    left_behind(client, owner, seconds=3600)
    start = time.monotonic()
    with lease(client, uri, NAME) as held:
        assert held.owner == owner
    assert time.monotonic() - start < 60 and locks(client) == []


def test_without_a_place_for_the_lock_file_it_says_so(store, tmp_path, monkeypatch):
    client, _ = store
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RegistryError, match="no lock file"), lease(client, "http://elsewhere", NAME):
        pass


def test_a_second_process_of_this_host_waits(store):
    client, uri = store
    with lease(client, uri, NAME), pytest.raises(RegistryError, match="another process"):
        with lease(client, uri, NAME, patience=0.1):
            pass


def test_a_repeated_request_of_the_transport_is_not_another_holder(store, monkeypatch):
    client, uri = store
    real = type(client).create_registered_model

    def twice(self, *arguments, **options):
        real(self, *arguments, **options)
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(client), "create_registered_model", twice)
    with lease(client, uri, NAME, patience=0.1) as held:
        held.check()
    assert locks(client) == []
