"""Tests of hypothesis do not fail for what other threads do, nor for the time that a busy machine takes."""

from __future__ import annotations

import random
import re
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.repository import ROOT


@st.composite
def draws_beside_another_thread(draw):
    thread = threading.Thread(target=random.random)  # as a service of Prefect's does, between two of its turns
    thread.start()
    thread.join()
    return draw(st.integers())


@settings(max_examples=5)
@given(draws_beside_another_thread(), st.integers())
def test_another_thread_may_use_random(_first, _second):
    pass


@settings(max_examples=1)
@given(st.just(0.3))
def test_a_slow_example_is_no_failure(seconds):
    time.sleep(seconds)


def test_no_test_draws_from_the_state_that_all_threads_share():
    drawn = {
        path.relative_to(ROOT).as_posix(): found
        for path in (ROOT / "tests").rglob("*.py")
        if (
            found := re.findall(
                r"\brandom\.(?:random|uniform|randint|choices?|sample|shuffle)\(", path.read_text("utf-8")
            )
        )
        and "import random\n" in path.read_text("utf-8")
    }
    assert not drawn
