"""The code for CUDA, with stand-ins for vLLM's functions: its buffers, what a captured step replays, what it refuses.

Nothing here has run on a GPU. Tensors lie on the CPU, or on the stand-in for a CUDA device (tests/cuda_stand_in), where
graphs are recorded and replayed and waiting for the device is noticed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsemm.errors import EngineError
from sparsemm.vllm import connect, cuda
from sparsemm.vllm.backend import HeadwiseBuilder
from sparsemm.vllm.kernels import FlashKernel
from sparsemm.vllm.plan import Columns, Plan
from sparsemm.vllm.spec import HeadwiseSpec
from tests.vllm import flash

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYERS, HEADS, GROUP, DIM, SIZE, LONGEST = 2, 2, 3, 16, 16, 256
NAMES = [f"model.layers.{layer}.self_attn.attn" for layer in range(LAYERS)]
PROMPTS = (70, 5, 48, 130)
PLAN = Plan(
    method="sparsemm",
    num_kv_heads=HEADS,
    layers=tuple(range(LAYERS)),
    budget=24,
    window=4,
    options=(),
    scores=((0.1, 0.9), (0.5, 0.2)),
    copy=False,
    ranks=1,
    buckets=(tuple(range(LAYERS)),),
)
SPEC = HeadwiseSpec(
    block_size=SIZE, num_kv_heads=HEADS, head_size=DIM, dtype=torch.float16, plan=PLAN, bucket=PLAN.buckets[0]
)


@pytest.fixture(autouse=True)
def without_vllms_processes(monkeypatch):
    """Builders and layers ask these two things of the process that they are in."""
    options = {"sparsemm": {"plan": PLAN.to_json()}}
    monkeypatch.setattr("sparsemm.vllm.backend.get_tensor_model_parallel_rank", lambda: 0)
    config = SimpleNamespace(additional_config=options)
    monkeypatch.setattr("sparsemm.vllm.backend.get_current_vllm_config", lambda: config)


def vllm_config(captured=6, full=True):
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=6),
        compilation_config=SimpleNamespace(
            max_cudagraph_capture_size=captured, cudagraph_mode=SimpleNamespace(has_full_cudagraphs=lambda: full)
        ),
        model_config=SimpleNamespace(max_model_len=LONGEST),
    )


class Drive:
    """A builder and a layer for every name, and requests with their blocks as the scheduler would give them."""

    def __init__(self, builder, dtype=torch.float16):
        self.builder, self.requests = builder, {}
        self.cache = [torch.zeros(200, HEADS, SIZE, 2 * DIM, dtype=dtype, device=DEVICE) for _ in NAMES]
        self.layers = [cuda.CudaImpl(HEADS * GROUP, DIM, DIM**-0.5, HEADS, None, None, "auto") for _ in NAMES]
        for layer in self.layers:
            layer.kernel = builder.kernel
        builder.batch = lambda count: (
            list(self.requests)[:count],
            np.array([columns.prompt for columns, _ in self.requests.values()], dtype=np.int32)[:count],
        )
        self.free = iter(range(1, 200))
        # What vLLM's model runner keeps for captured steps, too.
        self.table = torch.zeros(6, 2 * (LONGEST // SIZE) + 1, dtype=torch.int32, device=DEVICE)

    def add(self, prompt):
        columns = Columns.of(PLAN, PLAN.buckets[0], SIZE, prompt)
        self.requests[f"request-{len(self.requests)}"] = (columns, 0)

    def common(self, new, padded=None):
        """vLLM's description of a step with so many new tokens of each request, which are then counted."""
        for row, (name, (columns, done)) in enumerate(list(self.requests.items())[: len(new)]):
            if done >= columns.prompt:
                self.table[row, slice(*columns.freed())] = 0
            for column in range(columns.count(done), columns.count(done + new[row])):
                self.table[row, column] = next(self.free)
            self.requests[name] = (columns, done + new[row])
        padded = len(new) if padded is None else padded
        starts = torch.zeros(padded + 1, dtype=torch.int32)
        starts[1:] = sum(new)
        starts[1 : len(new) + 1] = torch.tensor(new).cumsum(0)
        seen = torch.zeros(padded, dtype=torch.int32)
        seen[: len(new)] = torch.tensor([done for _, done in self.requests.values()][: len(new)])
        return SimpleNamespace(
            num_reqs=padded,
            num_actual_tokens=sum(new) + padded - len(new),
            query_start_loc_cpu=starts,
            seq_lens_cpu_upper_bound=seen,
            block_table_tensor=self.table[:padded],
        )

    def prefill(self):
        """All prompts, whole, in one step."""
        self.table.zero_()
        common = self.common([columns.prompt for columns, _ in self.requests.values()])
        metadata = self.builder.build(0, common)
        return self.forward(metadata, self.draw(common.num_actual_tokens, 0))

    def draw(self, tokens, seed):
        """(layers, 3 kinds) of queries, keys and values, with strides as in one product of all three."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = (GROUP + 2) * HEADS
            return [torch.randn(tokens, width, DIM).to(self.cache[0].dtype).to(DEVICE) for _ in NAMES]

    def forward(self, metadata, states):
        outputs = []
        for name, layer, cache, state in zip(NAMES, self.layers, self.cache, states, strict=True):
            query, key, value = state.split([GROUP * HEADS, HEADS, HEADS], dim=1)
            output = torch.zeros(query.shape, dtype=query.dtype, device=DEVICE)
            layer.forward(SimpleNamespace(layer_name=name), query, key, value, cache, metadata, output)
            outputs.append(output)
        return torch.stack(outputs)


def start(builder_class=cuda.CudaBuilder, dtype=torch.float16, prompts=PROMPTS, **options):
    builder = builder_class(replace(SPEC, dtype=dtype), NAMES, vllm_config(**options), DEVICE)
    drive = Drive(builder, dtype)
    for prompt in prompts:
        drive.add(prompt)
    return drive


@pytest.fixture
def flash_kernel(monkeypatch):
    """Builders for CUDA take the kernel for it, with stand-ins for vLLM's functions."""
    monkeypatch.setattr(cuda, "flash_version", lambda spec: 2)
    monkeypatch.setattr(
        cuda.CudaBuilder, "choose_kernel", lambda self: FlashKernel(**flash.kernel_options(self.device))
    )


def close(one, other):
    return torch.allclose(one.float(), other.float(), atol=4e-3)


@pytest.mark.parametrize("padded", [4, 6])
def test_a_captured_step_gives_the_outputs_of_plain_pytorch(padded, flash_kernel):
    """A graph reads the buffers of the time when it was captured, and so does metadata of that time."""
    plain, ours = start(HeadwiseBuilder), start()
    captured = ours.builder.build_for_cudagraph_capture(ours.common([], padded))
    ours.forward(captured, ours.draw(padded, 99))  # changes no row of a request
    assert close(plain.prefill(), ours.prefill())
    for number in range(1, 40):
        new = plain.common([1] * 4)
        states = ours.draw(padded, number)
        right = plain.forward(plain.builder.build(0, new), [state[:4] for state in states])
        step = ours.builder.build(0, ours.common([1] * 4, padded))
        assert close(right, ours.forward(captured, states)[:, :4]), number
        assert step.before is None and not step.prompts


def test_buffers_stay_where_they_are_while_their_contents_follow(flash_kernel):
    drive = start()
    drive.prefill()
    captured = drive.builder.build_for_cudagraph_capture(drive.common([], 6)).after

    def addresses(sequences):
        tensors = (sequences.starts, sequences.slots, sequences.lengths, sequences.lanes)
        return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]

    right = addresses(captured)
    assert captured.rows is None and captured.longest == [LONGEST] and (captured.slots == -1).all()
    lengths = []
    for _ in range(3):
        step = drive.builder.build(0, drive.common([1] * 4, 6)).after
        assert addresses(step) == right
        assert (captured.slots[:, : 4 * HEADS] >= 0).all() and (captured.slots[:, 4 * HEADS :] == -1).all()
        assert not captured.lengths[:, 4 * HEADS :].any()
        lengths.append(captured.lengths[:, : 4 * HEADS].clone())
    assert (lengths[1] == lengths[0] + 1).all() and (lengths[2] == lengths[1] + 1).all()
    drive.requests.popitem()  # a request ends: its place is padding from now on
    drive.builder.build(0, drive.common([1] * 3, 6))
    assert (captured.slots[:, 3 * HEADS :] == -1).all() and not captured.lengths[:, 3 * HEADS :].any()


def test_more_requests_than_are_captured_need_no_buffers(flash_kernel):
    plain, ours = start(HeadwiseBuilder), start(captured=2)
    assert ours.builder.slots.shape == (LAYERS, 2 * HEADS)
    assert close(plain.prefill(), ours.prefill())
    states = ours.draw(4, 1)
    step = ours.builder.build(0, ours.common([1] * 4))
    assert step.after.slots.data_ptr() != ours.builder.slots.data_ptr()
    assert close(plain.forward(plain.builder.build(0, plain.common([1] * 4)), states), ours.forward(step, states))
    assert not start(full=False).builder.slots.numel(), "nothing is captured"


def test_a_step_that_ends_a_prompt_is_not_taken_for_a_captured_one(flash_kernel):
    """Also where every request has one token."""
    drive = start(prompts=(41, 50))
    step = drive.builder.build(0, drive.common([40, 50]))
    drive.forward(step, drive.draw(90, 0))
    step = drive.builder.build(0, drive.common([1, 1]))
    assert step.before is not None and step.after.slots.data_ptr() != drive.builder.slots.data_ptr()
    assert [prompt.ends is not None for prompt in step.prompts] == [True]


def test_the_model_runner_does_not_replay_a_step_with_tokens_of_a_prompt():
    runner = object.__new__(cuda.CudaRunner)
    runner.input_batch = SimpleNamespace(
        num_reqs=2, num_computed_tokens_cpu=np.array([70, 40, 9]), num_prompt_tokens=np.array([70, 41, 50])
    )
    step = dict(max_num_scheduled_tokens=1, uniform_decode_query_len=1, num_tokens=2, num_reqs=2)
    assert not runner._is_uniform_decode(**step)
    assert runner._is_uniform_decode(**step, force_uniform_decode=True), "as while vLLM captures"
    runner.input_batch.num_computed_tokens_cpu[1] = 41
    assert runner._is_uniform_decode(**step) and not runner._is_uniform_decode(**step | dict(num_tokens=3))


def test_a_dummy_step_that_is_no_decode_step_computes_nothing(flash_kernel):
    drive = start()
    common = SimpleNamespace(**vars(drive.common([], 3)) | dict(num_actual_tokens=8))
    step = drive.builder.build_for_cudagraph_capture(common)
    assert step.before is None and step.after is None
    assert not drive.forward(step, drive.draw(8, 0)).any() and not drive.cache[0].any()


@pytest.mark.parametrize(
    "changes,version",
    [
        (dict(), 3),
        (dict(dtype=torch.bfloat16, head_size=128), 3),
        (dict(dtype=torch.float32), None),
        (dict(head_size=12), None),
        (dict(head_size=512), None),
        (dict(block_size=8), None),
    ],
)
def test_which_caches_flash_attention_serves(changes, version, monkeypatch):
    monkeypatch.setattr(cuda, "get_flash_attn_version", lambda **_: 3)
    spec = replace(SPEC, **changes)
    assert cuda.flash_version(spec) == version
    graphs = cuda.CudaBuilder.get_cudagraph_support(None, spec)
    assert graphs.name == ("NEVER" if version is None else "UNIFORM_SINGLE_TOKEN_DECODE")


def test_where_flash_attention_is_missing_pytorch_computes(monkeypatch):
    monkeypatch.setattr(cuda, "get_flash_attn_version", lambda **_: None)  # as before compute capability 8.0
    plain, ours = start(HeadwiseBuilder), start(full=False)
    assert type(ours.builder.kernel).__name__ == "TorchKernel"
    assert torch.equal(plain.prefill(), ours.prefill())


def test_layers_with_other_features_are_refused():
    arguments = (HEADS * GROUP, DIM, DIM**-0.5, HEADS)
    for what, options in (
        ("attention sinks", dict(sinks=torch.zeros(6))),
        ("a soft cap", dict(logits_soft_cap=30.0)),
        ("another layer's cache", dict(kv_sharing_target_layer_name="model.layers.0")),
    ):
        with pytest.raises(EngineError, match=f"a layer with {what}.* is not served"):
            cuda.CudaImpl(*arguments, None, None, "auto", **options)
    with pytest.raises(EngineError, match="a layer with ALiBi is not served"):
        cuda.CudaImpl(*arguments, [1.0] * 6, None, "auto")


def test_an_engine_without_options_does_not_get_the_backend(monkeypatch):
    config = SimpleNamespace(additional_config={})
    monkeypatch.setattr("sparsemm.vllm.backend.get_current_vllm_config", lambda: config)
    with pytest.raises(EngineError, match="runs without its options"):
        cuda.CudaImpl(HEADS * GROUP, DIM, DIM**-0.5, HEADS, None, None, "auto")


def test_model_runner_v2_is_refused():
    worker = object.__new__(cuda.CudaWorker)
    worker.use_v2_model_runner = True
    with pytest.raises(EngineError, match="model runner V2"):
        worker._make_model_runner()


def test_another_backend_for_compressed_layers_is_refused(monkeypatch):
    spec_group = SimpleNamespace(
        kv_cache_spec=SPEC, metadata_builders=[object()], backend=SimpleNamespace(get_name=lambda: "OTHER")
    )
    runner = object.__new__(cuda.CudaRunner)
    runner.attn_groups = [[spec_group]]
    runner.vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={}))
    with pytest.raises(EngineError, match="have the attention backend OTHER"):
        runner.connect(runner)


def test_the_backend_is_chosen_for_full_attention_on_cuda_alone(monkeypatch):
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    def config(**chosen):
        options = {"sparsemm": {"plan": PLAN.to_json()}}
        return SimpleNamespace(
            additional_config=options, attention_config=SimpleNamespace(backend_per_kind=dict(chosen))
        )

    on_cuda, on_cpu = config(sliding_window="other"), config()
    connect.choose_backend(on_cuda, "cuda")
    connect.choose_backend(on_cpu, "cpu")
    custom = {"full_attention": AttentionBackendEnum.CUSTOM}
    assert on_cuda.attention_config.backend_per_kind == custom | {"sliding_window": "other"}
    assert not on_cpu.attention_config.backend_per_kind
    stock = config()
    stock.additional_config = {}
    connect.choose_backend(stock, "cuda")
    assert not stock.attention_config.backend_per_kind
    with pytest.raises(EngineError, match="FLASH_ATTN of backend_per_kind is not served"):
        connect.choose_backend(config(full_attention=AttentionBackendEnum.FLASH_ATTN), "cuda")


def test_vllm_accepts_the_backend_and_finds_it_by_its_name():
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends.registry import _ATTN_OVERRIDES, AttentionBackendEnum
    from vllm.v1.attention.selector import AttentionSelectorConfig

    try:
        connect.connect("cuda")
        assert AttentionBackendEnum[cuda.CudaBackend.get_name()].get_class() is cuda.CudaBackend
    finally:
        _ATTN_OVERRIDES.pop(AttentionBackendEnum.CUSTOM)
    for dtype, size in ((torch.bfloat16, 128), (torch.float32, 12)):
        config = AttentionSelectorConfig(head_size=size, dtype=dtype, kv_cache_dtype="auto", block_size=16)
        reasons = cuda.CudaBackend.validate_configuration(device_capability=DeviceCapability(7, 5), **config._asdict())
        assert not reasons
        sinks = config._replace(has_sink=True)._asdict()
        assert cuda.CudaBackend.validate_configuration(device_capability=DeviceCapability(9, 0), **sinks)


on_a_device = pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device; another test starts the stand-in")


@on_a_device
def test_a_cuda_graph_of_a_step_is_replayed(flash_kernel):
    """The layers' Python runs once; a replay computes with what the buffers hold by then."""
    plain, ours = start(HeadwiseBuilder), start()
    assert close(plain.prefill(), ours.prefill())
    captured = ours.builder.build_for_cudagraph_capture(ours.common([], 6))
    states = [torch.zeros_like(state) for state in ours.draw(6, 0)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = ours.forward(captured, states)
    for number in range(1, 20):
        for state, new in zip(states, ours.draw(6, number), strict=True):
            state.copy_(new)
        right = plain.forward(plain.builder.build(0, plain.common([1] * 4)), [state[:4] for state in states])
        ours.builder.build(0, ours.common([1] * 4, 6))
        graph.replay()
        assert close(right, outputs[:, :4]), number


@on_a_device
@pytest.mark.skipif("CUDA_STAND_IN" not in os.environ, reason="the stand-in notices it")
def test_a_step_behind_the_prompts_never_waits_for_the_device(flash_kernel):
    from torch.utils._python_dispatch import TorchDispatchMode

    sys.path.append(str(Path(__file__).parents[1] / "cuda_stand_in"))
    from graphs import _refuse_waiting, _tensors

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            _refuse_waiting(func, args, kwargs or {}, _tensors(args, kwargs))
            return func(*args, **kwargs or {})

    drive = start()
    drive.prefill()
    for number in range(70):  # the layout of a batch is computed again now and then
        common, states = drive.common([1] * 4), drive.draw(4, number)
        with Watch():
            drive.forward(drive.builder.build(0, common), states)
    with Watch(), pytest.raises(RuntimeError, match="not permitted"):
        drive.cache[0].any().item()


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="this is the device")
def test_all_of_it_on_a_stand_in_for_a_cuda_device():
    root = Path(__file__).parents[2]
    options = ["--confcutdir", "tests/vllm", "-p", "no:cacheprovider", "-o", "filterwarnings=error:::sparsemm"]
    command = [sys.executable, "tests/cuda_stand_in", "-m", "pytest", "tests/vllm/test_cuda.py", *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:]
    assert "failed" not in done.stdout and "skipped" in done.stdout
