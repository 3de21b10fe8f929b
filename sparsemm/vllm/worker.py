"""What a worker or a model runner of vLLM does for a compressed cache."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import FullAttentionSpec, replace_as

from sparsemm.errors import EngineError
from sparsemm.vllm.backend import HeadwiseBuilder
from sparsemm.vllm.settings import plan_of
from sparsemm.vllm.spec import HeadwiseSpec
from sparsemm.vllm.step import Windows


def refuse_second_runner(worker: Any) -> None:
    """Refuses a worker with model runner V2, which does not say which requests run.

    Raises:
        EngineError: with what to do instead.
    """
    if worker.use_v2_model_runner:
        hint = "unset VLLM_USE_V2_MODEL_RUNNER"
        raise EngineError("model runner V2 is not served with a compressed cache", hint=hint)


class Headwise:
    """Goes before a class of vLLM's that has `get_kv_cache_spec` and `execute_model`, a worker or a model runner."""

    vllm_config: Any

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """vLLM's specs by layer, those of full-attention layers with the plan of how many rows their heads keep.

        Raises:
            EngineError: if vLLM gives a layer that should be compressed another kind of cache.
        """
        plan = plan_of(self.vllm_config)
        assert plan is not None
        specs: dict[str, Any] = super().get_kv_cache_spec()  # type: ignore[misc]
        full = {name: extract_layer_index(name) for name, spec in specs.items() if type(spec) is FullAttentionSpec}
        if sorted(full.values()) != list(plan.layers):
            kinds = sorted({type(spec).__name__ for spec in specs.values()})
            what = f"layers {sorted(full.values())} have full attention in vLLM, {list(plan.layers)} in transformers"
            raise EngineError(what, where=", ".join(kinds))
        bucket = {layer: part for part in plan.buckets for layer in part}
        for name, layer in full.items():
            part = bucket[plan.layers.index(layer)]
            specs[name] = replace_as(specs[name], HeadwiseSpec, plan=plan, bucket=part)
        return specs

    def connect(self, runner: Any) -> None:
        """Tells the attention backend which requests a model runner runs, and gives every layer its kernel.

        Raises:
            EngineError: if a compressed layer has another attention backend.
        """
        self.windows = Windows()
        self.builders: list[HeadwiseBuilder] = []

        def batch(count: int) -> tuple[list[str], Any]:
            """Ids and prompt lengths (N,) int of the first `count` running requests."""
            ids = runner.input_batch.req_ids[:count]
            return ids, runner.input_batch.num_prompt_tokens[: len(ids)]

        layers = self.vllm_config.compilation_config.static_forward_context
        for group in (group for groups in runner.attn_groups for group in groups):
            for builder in group.metadata_builders:
                if isinstance(builder, HeadwiseBuilder) and builder.headwise:
                    builder.batch, builder.windows = batch, self.windows
                    self.builders.append(builder)
                    for name in builder.layer_names:
                        layers[name].impl.kernel = builder.kernel
                elif isinstance(group.kv_cache_spec, HeadwiseSpec):
                    what = f"layers that should be compressed have the attention backend {group.backend.get_name()}"
                    raise EngineError(
                        what, hint="leave the attention backend to vLLM, and no other plug-in in its place"
                    )

    def execute_model(self, scheduler_output: Any, *args: Any, **options: Any) -> Any:
        """Runs a step, and first forgets requests that are finished or preempted."""
        gone = {*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())}
        for request in gone:
            self.windows.forget(request)
        for builder in self.builders:
            builder.forget(gone)
        return super().execute_model(scheduler_output, *args, **options)  # type: ignore[misc]
