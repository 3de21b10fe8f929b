"""What torch.cuda says on the stand-in: one device of capability 9.0, whose work is done when it is asked for."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import flash
import torch
from graphs import CUDAGraph, capturing, graph

MEMORY = 8 << 30
DEVICE = torch.device("cuda", 0)
LIBRARIES: list[torch.library.Library] = []


class Stream:
    """The one stream."""

    cuda_stream, device = 0, DEVICE

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, _: Stream) -> None:
        """There is nothing to wait for."""

    synchronize = wait_event = wait_stream


class Event:
    """A mark in time."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        """Now."""
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds between two marks."""
        return 1e3 * (other.at - self.at)

    def synchronize(self) -> None:
        """There is nothing to wait for."""


class Nothing(contextlib.nullcontext[None]):
    """A context that does nothing with what it is given."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def install() -> None:
    """Say so wherever torch.cuda is asked."""
    count = torch.ops.cuda_stand_in
    about = SimpleNamespace(name="stand-in", major=9, minor=0, total_memory=MEMORY, multi_processor_count=3)

    def says(value: Any) -> Any:
        return lambda *_, **__: value

    answers: dict[str, Any] = {
        "_lazy_init": says(None),
        "is_available": says(True),
        "is_initialized": says(True),
        "is_bf16_supported": says(True),
        "device_count": says(1),
        "current_device": says(0),
        "set_device": says(None),
        "get_device_name": says(about.name),
        "get_device_capability": says((about.major, about.minor)),
        "get_device_properties": says(about),
        "synchronize": says(None),
        "empty_cache": says(None),
        "memory_allocated": lambda *_: count.allocated(),
        "memory_reserved": lambda *_: count.allocated(),
        "max_memory_allocated": lambda *_: count.most_allocated(),
        "reset_peak_memory_stats": lambda *_: count.reset_most_allocated(),
        "mem_get_info": lambda *_: (MEMORY - count.allocated(), MEMORY),
        "current_stream": lambda *_: Stream(),
        "is_current_stream_capturing": capturing,
        "default_generators": (torch.default_generator,),
        "device": Nothing,
        "stream": Nothing,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": graph,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    LIBRARIES.append(flash.install())
