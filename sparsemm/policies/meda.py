"""MEDA: more slots for layers in which text and image attend to each other more evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemm.policies.behind_image import attention_of_rows
from sparsemm.policies.h2o import AccumulatedAttention
from sparsemm.policies.layer_shares import LayerShares
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True, kw_only=True)
class MEDA(LayerShares):
    """Layers in proportion to the softmax of their cross-modal attention entropy (arXiv 2502.17599).

    The entropy of a layer is the mean over rows i and heads of -sum A[i, j] log A[i, j] over the positions j <= i of
    the other kind: image tokens for a row of text, text for a row of an image. Without an image it is over all j <= i,
    as the public code has it for every prompt. The paper also merges what it evicts, which this does not.
    """

    selector: Selector = AccumulatedAttention()
    summary: ClassVar[str] = "the same slots for the heads of a layer, more of them where text and image mix evenly"

    def measure(self, prompt: Prompt) -> torch.Tensor:
        """The entropy of a layer in nats: (B,) fp32."""
        total = torch.zeros(len(prompt.key), dtype=torch.float32, device=prompt.key.device)
        for weights, seen, start in attention_of_rows(prompt, prompt.valid):
            if prompt.image is not None:
                rows = prompt.image[:, start : start + seen.shape[1]]
                across = prompt.image[:, None, : seen.shape[2]] != rows[..., None]
                seen = torch.where(prompt.image.any(-1)[:, None, None], seen & across, seen)
            total += (torch.special.entr(weights) * seen[:, None, None]).sum(dim=(1, 2, 3, 4))
        return total / (prompt.query.shape[1] * prompt.valid.sum(-1))

    def shares(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """(L,) softmax over the layers."""
        shares: NDArray[np.float64] = np.exp(measured - measured.max())
        return shares
