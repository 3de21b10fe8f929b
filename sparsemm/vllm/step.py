"""What a step of the engine means for compressed layers, and what chunks of a prompt leave for later ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sparsemm.errors import EngineError
from sparsemm.vllm.kernels import Sequences


@dataclass
class Prompt:
    """A request whose prompt has tokens in this step.

    Attributes:
        request: its id.
        start, stop: its tokens in the batch.
        done: tokens before this step.
        source: (Hkv, tokens so far) int64 slots of its rows, where these are read.
        rated: whether every row rates the others, so that each chunk does.
        ends: what compresses it, if the prompt ends in this step.
    """

    request: str
    start: int
    stop: int
    done: int
    source: torch.Tensor | None
    rated: bool
    ends: Ending | None


@dataclass
class Ending:
    """What compression of a prompt needs.

    Attributes:
        length: P in tokens.
        rows: (layers, Hkv) int64 rows that each head keeps.
        target: for each layer the slots (rows of all heads,) int64 they move to, head by head.
    """

    length: int
    rows: torch.Tensor
    target: list[torch.Tensor]


@dataclass
class HeadwiseMetadata:
    """A step of a group of layers.

    Attributes:
        at: place of each layer in the group, by name.
        before, after: sequences before and after the end of their prompts.
        prompts: requests with tokens before it.
        windows: newest queries of prompts that come in chunks.
    """

    at: dict[str, int]
    before: Sequences | None
    after: Sequences | None
    prompts: list[Prompt]
    windows: Windows


@dataclass
class Windows:
    """What earlier chunks of prompts left for later ones: request -> layer -> (tokens so far, tensor).

    Attributes:
        queries: the newest queries (R, Hq, D).
        worth: (Hkv, tokens so far) fp32, the most that any row said a position is worth.
    """

    queries: dict[str, dict[str, tuple[int, torch.Tensor]]] = field(default_factory=dict)
    worth: dict[str, dict[str, tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def forget(self, request: str) -> None:
        """Forgets a request that is finished or preempted."""
        self.queries.pop(request, None)
        self.worth.pop(request, None)

    def raise_worth(self, prompt: Prompt, layer: str, worth: torch.Tensor) -> torch.Tensor:
        """The maximum of what this chunk's rows say (Hkv, tokens so far) and what earlier chunks' rows said.

        Raises:
            EngineError: if rows before this chunk did not rate.
        """
        layers = self.worth.setdefault(prompt.request, {})
        seen, earlier = layers.pop(layer, (0, None))
        if prompt.done and (earlier is None or seen != prompt.done):
            what = f"{seen} of {prompt.done} earlier rows of a prompt rated it"
            raise EngineError(what, where=f"request {prompt.request}, {layer}")
        if earlier is not None and prompt.done:
            worth[:, : prompt.done] = torch.maximum(worth[:, : prompt.done], earlier)
        if prompt.ends is None:
            layers[layer] = (worth.shape[1], worth)
        elif not layers:
            del self.worth[prompt.request]
        return worth

    def extend(self, prompt: Prompt, layer: str, query: torch.Tensor, window: int) -> torch.Tensor:
        """The newest queries with those of this step (T, Hq, D), at most `window`; kept if the prompt goes on."""
        newest = query[-window:]
        layers = self.queries.setdefault(prompt.request, {})
        seen, earlier = layers.pop(layer, (0, None))
        if len(newest) < window and earlier is not None and seen == prompt.done:
            newest = torch.cat([earlier, newest])[-window:]
        if prompt.ends is None:
            layers[layer] = (prompt.done + len(query), newest.clone())
        elif not layers:
            del self.queries[prompt.request]
        return newest
