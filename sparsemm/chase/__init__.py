"""Chase the heads that look at the image: one forward pass, argmax of q.k, hits per head."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()
