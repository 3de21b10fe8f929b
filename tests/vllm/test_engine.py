"""What an engine does with requests: preemption, prefix caching, drafts, aborted requests, several answers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sparsemm.errors import EngineError
from tests.vllm.engines import (
    RANDOM,
    TIE,
    Ask,
    answer,
    asks,
    assert_answers,
    engine,
    make_champion,
    numbers,
    run,
    table,
    texts,
    vllm_prompt,
)

QWEN = "tiny-qwen2-vl"
CACHE = dict(method="snapkv", budget=48, window=8)
ALLOWED_TIES = 0.2  # share of a test's requests


@pytest.fixture(scope="module")
def sparse(folder):
    """Options of SparseMM with scores."""
    return dict(method="sparsemm", budget=48, window=8, scores=str(table(QWEN, folder)))


def check(name, requests, answers, **cache):
    assert assert_answers(name, requests, answers, **cache) >= (1 - ALLOWED_TIES) * len(requests)


def scheduler(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler


def watch_preemptions(llm, monkeypatch):
    """A list that grows with every preempted request."""
    seen, real = [], scheduler(llm)._preempt_request
    monkeypatch.setattr(scheduler(llm), "_preempt_request", lambda *a, **k: (seen.append(a[0]), real(*a, **k))[1])
    return seen


@pytest.mark.parametrize("groups,caching", [(1, False), (3, True)])
def test_preempted_requests_are_answered_as_others_are(sparse, groups, caching, monkeypatch):
    requests = asks(10, new=60) + texts((5, 90), new=60)
    blocks = {1: 40, 3: 150}[groups]
    options = dict(num_gpu_blocks_override=blocks, enable_prefix_caching=caching, max_model_len=384)
    with engine(QWEN, sparse | {"groups": groups}, **options) as llm:
        preempted = watch_preemptions(llm, monkeypatch)
        answers = run(llm, QWEN, requests)
        assert preempted, "the pool is too large for this test"
    check(QWEN, requests, answers, **sparse)


def test_a_prefix_is_reused_and_answers_stay(sparse):
    requests = asks(6) + texts((5, 100))
    options = dict(num_gpu_blocks_override=2000, disable_log_stats=False)
    with engine(QWEN, sparse, enable_prefix_caching=True, **options) as llm:
        hits = []
        for _ in range(2):
            check(QWEN, requests, run(llm, QWEN, requests), **sparse)
            metrics = {metric.name: metric for metric in llm.get_metrics()}
            hits.append(metrics["vllm:prefix_cache_hits"].value)
        assert hits[0] == 0 and hits[1] > 1000


def test_a_conversation_that_goes_on_while_its_first_turn_is_preempted():
    """The first turn's answer is then another request's prompt, and in the prefix cache beyond its own window."""
    first = Ask("", (), 40, numbers((100,))[0].ids)
    tokens, _, _ = answer("llama", first, **CACHE)
    second = Ask("", (), 10, first.ids + tuple(tokens))
    with engine("llama", CACHE, enable_prefix_caching=True) as llm:
        from vllm import SamplingParams

        greedy = dict(temperature=0, ignore_eos=True)
        llm.enqueue([vllm_prompt("llama", first)], SamplingParams(max_tokens=40, **greedy), use_tqdm=False)
        outputs = {}

        def step():
            for output in llm.llm_engine.step():
                outputs[output.request_id] = output

        for _ in range(30):
            step()
        llm.enqueue([vllm_prompt("llama", second)], SamplingParams(max_tokens=10, **greedy), use_tqdm=False)
        step()
        running = scheduler(llm).running
        request = next(r for r in running if r.num_prompt_tokens == 100)
        running.remove(request)
        scheduler(llm)._preempt_request(request, 0.0)
        while llm.llm_engine.has_unfinished_requests():
            step()
        answers = [list(output.outputs[0].token_ids) for _, output in sorted(outputs.items())]
    check("llama", [first, second], answers, **CACHE)


def test_requests_are_preempted_at_every_age(sparse):
    """A resumed request has behind its prompt as many tokens as it had answered, one among them; others decode on."""
    from vllm import SamplingParams

    requests = asks(4, new=12)
    with engine(QWEN, sparse, enable_prefix_caching=True) as llm:
        outputs, ages = {}, []
        for number, ask in enumerate(requests):
            parameters = SamplingParams(temperature=0, max_tokens=ask.new, min_tokens=ask.new)
            llm.llm_engine.add_request(str(number), vllm_prompt(QWEN, ask), parameters)
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                outputs[int(output.request_id)] = list(output.outputs[0].token_ids)
            # Those before it in the batch go on, and so do those behind it.
            running = scheduler(llm).running
            for request in [r for r in running[1:] if r.num_output_tokens == 1 + len(ages)][:1]:
                ages.append(request.num_output_tokens)
                running.remove(request)
                scheduler(llm)._preempt_request(request, 0.0)
    assert ages[:4] == [1, 2, 3, 4]
    check(QWEN, requests, [outputs[i] for i in range(len(requests))], **sparse)


@pytest.mark.parametrize("method", ["sparsemm+peak", "snapkv+peak"])
def test_a_maximum_over_all_rows_is_updated_by_chunks(method, sparse, monkeypatch):
    """Also when the prompt is computed again after a preemption; prefix caching is turned off."""
    requests = asks(8, new=40) + texts((5, 47, 48, 90), new=40)
    cache = sparse | {"method": method} if method.startswith("sparsemm") else CACHE | {"method": method}
    options = dict(num_gpu_blocks_override=40, max_num_batched_tokens=50, max_num_seqs=8, max_model_len=384)
    with engine(QWEN, cache | {"groups": 1}, enable_prefix_caching=True, **options) as llm:
        preempted = watch_preemptions(llm, monkeypatch)
        answers = run(llm, QWEN, requests)
        assert preempted, "the pool is too large for this test"
        worker = llm.llm_engine.model_executor.driver_worker.worker
        assert not worker.windows.queries and not worker.windows.worth
    check(QWEN, requests, answers, **cache)


@pytest.mark.parametrize("caching", [False, True])
def test_requests_that_are_aborted_leave_nothing(caching):
    requests = asks(5)
    with engine(QWEN, CACHE, enable_prefix_caching=caching, max_num_batched_tokens=100, max_num_seqs=8) as llm:
        from vllm import SamplingParams

        for stop_after in (0, 1, 3, 8):
            names = llm.enqueue(
                [vllm_prompt(QWEN, ask) for ask in requests], SamplingParams(max_tokens=30), use_tqdm=False
            )
            for _ in range(stop_after):
                llm.llm_engine.step()
            llm.llm_engine.abort_request(names, internal=True)
            while llm.llm_engine.has_unfinished_requests():
                llm.llm_engine.step()
        answers = run(llm, QWEN, requests)
        worker = llm.llm_engine.model_executor.driver_worker.worker
        assert not worker.windows.queries and not worker.windows.worth
    check(QWEN, requests, answers, **CACHE)


def test_a_prompt_that_was_not_compressed_stops_the_engine():
    """Rows that nobody evicted would otherwise be served, or others in their place."""
    with engine("llama", CACHE) as llm:
        from vllm import SamplingParams

        (name,) = llm.enqueue([vllm_prompt("llama", numbers((100,))[0])], SamplingParams(max_tokens=30), use_tqdm=False)
        for _ in range(3):
            llm.llm_engine.step()
        (manager,) = scheduler(llm).kv_cache_manager.coordinator.single_type_managers
        (request,) = manager.held
        with pytest.raises(EngineError, match="a prompt of 100 tokens has become one of 120.*as a request of its own"):
            manager.remove_skipped_blocks(request, 100, num_prompt_tokens=120)
        for builder in llm.llm_engine.model_executor.driver_worker.worker.builders:
            assert builder.ended == {request: 100}
            builder.forget([request])
        with pytest.raises(EngineError, match="behind a prompt of 100 tokens that was not compressed"):
            llm.llm_engine.step()
        llm.llm_engine.abort_request([name], internal=True)


@pytest.mark.slow
def test_the_champion_is_that_of_the_engines_start(tmp_path, monkeypatch):
    tables = [table(QWEN, tmp_path, seed).rename(tmp_path / f"{seed}.safetensors") for seed in (1, 2)]
    requests = asks(3) + texts((5, 90))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    champion = {"scores": f"models:/visual-heads.{QWEN}@champion"}
    for path in tables:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", make_champion(tmp_path, QWEN, path))
        cache = dict(method="sparsemm", budget=48, window=8, scores=str(path))
        with engine(QWEN, cache | champion) as llm:
            check(QWEN, requests, run(llm, QWEN, requests), **cache)


def test_several_answers_of_one_prompt():
    request = asks(1)[0]
    with engine(QWEN, CACHE, enable_prefix_caching=True) as llm:
        from vllm import SamplingParams

        parameters = SamplingParams(n=4, temperature=1.0, top_k=1, max_tokens=20, min_tokens=20)
        outputs = llm.generate([vllm_prompt(QWEN, request)], parameters, use_tqdm=False)[0].outputs
    check(QWEN, [request] * 4, [list(output.token_ids) for output in outputs], **CACHE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RANDOM if name != "qwen2.5-vl"])
def test_text_models(name):
    """Of head sizes that vLLM's own kernel serves; with one, layers with a sliding window stay vLLM's."""
    requests = numbers((100, 3, 47, 48, 49, 200, 64))
    for size, chunk in ((32, 512), (16, 50)):
        with engine(name, CACHE, block_size=size, max_num_batched_tokens=chunk, max_num_seqs=8) as llm:
            answers = run(llm, name, requests)
        check(name, requests, answers, **CACHE)


@pytest.mark.slow
def test_qwen2_5_vl():
    requests = asks(3) + texts((30,))
    with engine("qwen2.5-vl", CACHE) as llm:
        answers = run(llm, "qwen2.5-vl", requests)
    check("qwen2.5-vl", requests, answers, **CACHE)


def in_a_process_of_its_own(code, tmp_path, **variables):
    """Runs code, which has all names of tests.vllm.engines, and prints how many answers of how many are equal."""
    script = tmp_path / "script.py"
    lines = ["from tests.vllm.engines import *", *textwrap.dedent(code).strip().splitlines()]
    script.write_text("\n".join(["if __name__ == '__main__':", *(f"    {line}" for line in lines)]) + "\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    equal, count = map(int, done.stdout.split("equal", 1)[1].split())
    assert equal >= (1 - ALLOWED_TIES) * count


@pytest.mark.slow
def test_drafts_from_the_prompt(tmp_path):
    """Rejected drafts are overwritten; numba, which compiles them, leaves no other engine start in its process."""
    code = f"""
        import random
        rng = random.Random(3)
        piece = [rng.randrange(3, 64) for _ in range(20)]
        requests = [Ask("", (), 40, tuple(piece[i:] * 6)) for i in range(6)]
        drafts = dict(method="ngram", num_speculative_tokens=4, prompt_lookup_max=3, prompt_lookup_min=1)
        with engine("llama", {CACHE!r}, speculative_config=drafts, disable_log_stats=False) as llm:
            answers = run(llm, "llama", requests)
            metrics = {{metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}}
        accepted, drafted = (metrics[f"vllm:spec_decode_num_{{what}}_tokens"] for what in ("accepted", "draft"))
        assert 0 < accepted < drafted
        print("equal", assert_answers("llama", requests, answers, **{CACHE!r}), len(requests))
    """
    in_a_process_of_its_own(code, tmp_path)


def test_random_mixes_of_requests(sparse):
    """200 mixes in one engine: whatever comes together, in whatever chunks, each is answered as if alone."""
    pool = asks(4) + texts((5, 30, 47, 48, 90)) + asks(2, pages=2)
    rng = random.Random(1)
    options = dict(block_size=8, num_gpu_blocks_override=1000, max_num_batched_tokens=96, max_num_seqs=8)
    with engine(QWEN, sparse, enable_prefix_caching=True, **options) as llm:
        for _ in range(200):
            mix = rng.choices(pool, k=rng.randint(1, 4))
            new = [Ask(ask.text, ask.pages, rng.randint(1, 5)) for ask in mix]
            for ask, tokens in zip(mix, run(llm, QWEN, new), strict=True):
                right, margin, _ = answer(QWEN, ask, **sparse)  # of which the answer is the beginning
                wrong = next((i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), None)
                assert wrong is None or margin[wrong] < TIE


def test_other_architectures_are_refused(folder):
    from transformers import OPTConfig

    OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
        architectures=["OPTForCausalLM"],
    ).save_pretrained(folder / "opt")  # fmt: skip
    with pytest.raises(EngineError, match="OPTForCausalLM is not served"):
        with engine(folder / "opt", CACHE, load_format="dummy"):
            pass


def test_stock_engines_are_left_as_they_are():
    requests = numbers((100, 3, 64))
    with engine("llama", None, block_size=32) as llm:
        kinds = {type(group.kv_cache_spec).__name__ for group in scheduler(llm).kv_cache_config.kv_cache_groups}
        assert kinds == {"FullAttentionSpec"}
        answers = run(llm, "llama", requests)
    check("llama", requests, answers, method="full")


@pytest.mark.slow
def test_two_processes_of_tensor_parallelism(sparse, folder, tmp_path):
    code = f"""
        requests = asks(6) + texts((5, 90))
        with engine({QWEN!r}, {sparse | {"groups": 2}!r}, tensor_parallel_size=2) as llm:
            answers = run(llm, {QWEN!r}, requests)
        print("equal", assert_answers({QWEN!r}, requests, answers, **{sparse!r}), len(requests))
    """
    in_a_process_of_its_own(code, tmp_path, VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
