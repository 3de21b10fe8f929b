"""A vLLM plug-in that gives every KV head its own number of cached rows; `register` is its entry point."""

from __future__ import annotations

import logging

log = logging.getLogger("vllm.sparsemm")  # shown as vLLM's own lines are


def register() -> None:
    """Makes the plug-in known to vLLM, which calls this in each of its processes; another call changes nothing.

    An engine whose additional_config has no "sparsemm" is left as it is.
    """
    from vllm.version import __version__

    from sparsemm.vllm.settings import ARCHITECTURES, TESTED, configure

    try:
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
        from vllm.platforms import current_platform

        class Configure(VerifyAndUpdateConfig):
            """vLLM calls this for every engine of an architecture before it builds anything."""

            @staticmethod
            def verify_and_update_config(vllm_config) -> None:  # type: ignore[no-untyped-def]
                configure(vllm_config, __version__, platform)
                if __version__ in TESTED:
                    choose_backend(vllm_config, platform)

        platform = current_platform.device_name  # ROCm's device_type is that of CUDA
        for architecture in ARCHITECTURES:
            MODELS_CONFIG_MAP.setdefault(architecture, Configure)
        if __version__ in TESTED:
            from sparsemm.vllm.connect import choose_backend, connect

            connect(platform)
    except ImportError as error:
        log.error("sparsemm does not work with vLLM %s, install %s: %s", __version__, ", ".join(TESTED), error)
