"""Accuracy against budget: local tasks run by lmms-eval through the compressed cache."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # lmms-eval draws three bars per combination; the stage shows its own

from sparsemm.compat import define_missing_torchvision_operators  # noqa: E402

define_missing_torchvision_operators()
