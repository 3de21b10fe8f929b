"""Echo: as peak, with rows that also attend to later positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsemm.policies.peak import Peak


@dataclass(frozen=True)
class Echo(Peak):
    """The maximum over every row i of the prompt of its attention to every position j, j > i included.

    As if the prompt were repeated behind itself, without a second pass: queries as they are, no causal mask. EchoPress
    (arXiv 2610.00412) also rotates queries by a constant offset.
    """

    causal: ClassVar[bool] = False
    summary: ClassVar[str] = "the positions that some row of the prompt, looking at all of it, attends to most"
