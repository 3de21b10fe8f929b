"""The stand-in refuses what a device refuses, and its graphs are graphs; run by `make test-cuda`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
stands_in = pytest.mark.skipif("CUDA_STAND_IN" not in os.environ, reason="not on the stand-in: make test-cuda")


@stands_in
def test_tensors_of_two_devices_are_refused() -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    for call in (lambda: here + there, lambda: there @ here, lambda: there.index_add_(0, here.long(), there)):
        with pytest.raises(RuntimeError, match="same device"):
            call()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    # As on a device: a single number of the host, and indices that lie there.
    assert (there * torch.tensor(2.0))[torch.tensor([0, 2])].tolist() == [2, 2]


@stands_in
def test_what_is_computed_there_stays_there() -> None:
    there = torch.arange(6.0, device="cuda").view(2, 3)
    view = there[:, 1:]
    view += 1
    assert there.cpu().tolist() == [[0, 2, 3], [3, 5, 6]]
    assert all(
        t.is_cuda for t in (view, there.sum(), there.to(torch.int8), torch.cat([there, there]), there.topk(1)[0])
    )
    weight = torch.ones(3, device="cuda", requires_grad=True)
    (there @ weight).sum().backward()
    assert weight.grad is not None and weight.grad.is_cuda and weight.grad.tolist() == [3, 7, 9]
    assert torch.zeros(2, pin_memory=True).is_pinned() and not torch.zeros(2).is_pinned()


@stands_in
def test_memory_is_counted() -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    first = torch.zeros(1000, device="cuda")
    second = first + 1
    assert torch.cuda.memory_allocated() - before == 8000
    del first
    assert torch.cuda.memory_allocated() - before == 4000 and torch.cuda.max_memory_allocated() - before == 8000
    del second
    assert torch.cuda.memory_allocated() == before


@stands_in
def test_a_graph_replays_the_device_and_not_the_host() -> None:
    counted, total, step = [], torch.zeros(2, device="cuda"), torch.ones(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counted.append(1)
        total += step * 2
        doubled = total * 2
    assert total.tolist() == [0, 0]  # a capture changes nothing
    for count in (1, 2):
        graph.replay()
        assert total.tolist() == [2 * count] * 2 and doubled.tolist() == [4 * count] * 2
    step.fill_(5)
    graph.replay()
    assert total.tolist() == [14, 14] and counted == [1]


@stands_in
@pytest.mark.parametrize(
    "waits",
    [
        lambda there: there.sum().item(),
        lambda there: there.cpu(),
        lambda there: there[there > 0],
        lambda there: there.nonzero(),
        lambda there: torch.equal(there, there),
        lambda there: there.copy_(torch.ones(3)),
    ],
)
def test_what_waits_for_the_device_cannot_be_captured(waits) -> None:  # type: ignore[no-untyped-def]
    there = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        waits(there)
    assert not torch.cuda.is_current_stream_capturing() and there.tolist() == [1, 1, 1]


@stands_in
def test_a_process_that_is_started_has_it_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.ones(2).cuda().device)"], capture_output=True
    )
    assert done.stdout.split() == [b"cuda:0"], done.stderr
