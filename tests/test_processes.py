"""Work shared between processes: the same results, in order; nothing is lost where one dies, nothing runs on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from sparsemm.processes import processes, share


def numbered(i: int) -> list[int]:
    return [i, os.getpid(), torch.get_num_threads()]


def wait_for(folder: Path, count: int) -> None:
    """Waits until there are so many files."""
    for _ in range(3000):
        if len(list(folder.iterdir())) >= count:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("count", [2, 3, 64])
def test_every_work_is_done_once_in_processes_of_one_thread(tmp_path, count):
    def met(i: int) -> list[int]:
        (tmp_path / str(os.getpid())).touch()
        wait_for(tmp_path, min(count, 5))
        return numbered(i)

    before = torch.get_num_threads()
    done = list(share([partial(met, i) for i in range(5)], count))
    assert [i for i, _, _ in done] == list(range(5))
    assert len({process for _, process, _ in done}) == min(count, 5) and os.getpid() not in {p for _, p, _ in done}
    assert {threads for _, _, threads in done} == {1} and torch.get_num_threads() == before


def test_a_process_that_is_done_takes_what_no_other_has_begun(tmp_path):
    def slow() -> int:
        wait_for(tmp_path, 3)
        return os.getpid()

    def quick(i: int) -> int:
        (tmp_path / str(i)).touch()
        return os.getpid()

    done = list(share([slow, *(partial(quick, i) for i in range(3))], 2))
    assert len(set(done[1:])) == 1 and done[0] not in done[1:]


@pytest.mark.parametrize(("works", "count"), [(5, 1), (1, 2), (0, 2)])
def test_one_process_or_one_work_stays_here(works, count):
    done = list(share([partial(numbered, i) for i in range(works)], count))
    assert [(i, process) for i, process, _ in done] == [(i, os.getpid()) for i in range(works)]


def test_one_process_gives_each_result_when_it_is_there():
    began = []
    shared = share([lambda i=i: began.append(i) or i for i in range(3)], 1)
    assert next(shared) == 0 and began == [0]


def test_tensors_are_read_where_they_are_and_arithmetic_is_the_same():
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    works = [lambda i=i: (weights @ weights[i]).tolist() for i in range(4)]
    assert list(share(works, 2)) == [work() for work in works]


def test_an_error_is_raised_here():
    def wrong() -> int:
        raise KeyError("which one")

    with pytest.raises(KeyError, match="which one"):
        list(share([int, wrong, int, int], 2))


def test_what_a_killed_process_left_is_done_here():
    here = os.getpid()

    def killed() -> int:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return 7

    done = list(share([partial(numbered, 0), killed, partial(numbered, 2), partial(numbered, 3)], 2))
    assert done[1] == 7 and [number for number, *_ in (done[0], *done[2:])] == [0, 2, 3]
    everyone_dies = list(share([killed] * 3, 2))
    assert everyone_dies == [7, 7, 7]


STOPPED = """
import os, signal, sys, time
from pathlib import Path
from sparsemm.processes import share
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
def work():
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(100)
list(share([work, work, work], 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they end after the work at hand")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_processes_end_with_the_one_that_waits(tmp_path, how):
    waiting = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], stderr=subprocess.PIPE)
    for _ in range(600):
        if len(list(tmp_path.iterdir())) == 2:
            break
        time.sleep(0.1)
    waiting.send_signal(how)
    assert waiting.wait(30) != 0
    waiting.stderr.close()
    working = [int(path.name) for path in tmp_path.iterdir()]
    for _ in range(300):
        if not any(alive(process) for process in working):
            break
        time.sleep(0.1)
    assert len(working) == 2 and not any(alive(process) for process in working)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_who_gains_from_processes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    small = torch.nn.Linear(8, 8)
    small.device = torch.device("cpu")
    assert processes(small) == 6
    large = torch.nn.Linear(1 << 15, 1 << 14, device="meta")
    large.device = torch.device("cpu")
    assert processes(large) == 1
    small.device = torch.device("cuda")
    assert processes(small) == 1
