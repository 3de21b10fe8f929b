"""Lets vLLM's processes import a torchvision without its compiled operators, beside a CPU build of torch.

`make vllm` copies this into the environment's site-packages: vLLM loads its plug-ins too late for it.
"""

import importlib.abc
import sys


class Declare(importlib.abc.MetaPathFinder):
    """Declares torchvision's operators just before torchvision is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            from sparsemm.compat import define_missing_torchvision_operators

            define_missing_torchvision_operators()
        return None


sys.meta_path.insert(0, Declare())
