"""vLLM engines on small checkpoints, and the right answers: transformers with our cache, one request at a time."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, whose blocks can be counted
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# What vLLM knows of its models costs a process to find out; tests with a cache folder of their own use it too.
os.environ.setdefault("VLLM_CACHE_ROOT", os.path.expanduser("~/.cache/vllm"))

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sparsemm
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.models import fingerprint
from sparsemm.scores import ScoreTable

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
TIE = 1e-4  # logits that differ by less may be ordered either way by other sums of the same numbers
NEW = 20  # tokens of an answer


@dataclass(frozen=True, eq=False)
class Ask:
    """A request: its text, its pages, and how many tokens to answer; it equals only itself."""

    text: str
    pages: tuple[Image.Image, ...] = ()
    new: int = NEW
    ids: tuple[int, ...] = ()  # instead of text and pages


@lru_cache
def asks(count: int, style: PageStyle = PageStyle(3, 12, (20, 30)), pages: int = 1, new: int = NEW) -> list[Ask]:  # noqa: B008
    """Requests with different pages."""
    images = [draw_record("calibration", 3, i, style).image for i in range(count * pages)]
    return [Ask("Read the page.", tuple(images[i * pages : (i + 1) * pages]), new) for i in range(count)]


@lru_cache
def texts(lengths: tuple[int, ...], new: int = NEW) -> list[Ask]:
    """Requests without a page, of so many characters."""
    rng = np.random.default_rng(7)
    letters = np.array(list("abcdefghij klmnop"))
    return [Ask("".join(rng.choice(letters, length)), (), new) for length in lengths]


def random_text_model(kind: str, head_dim: int = 32, **more: Any) -> Any:
    """A text model with random weights, so large that heads look at single tokens."""
    import transformers as hf

    sizes = dict(
        vocab_size=64,
        hidden_size=4 * head_dim,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(hf, f"{kind}Config")(**sizes | more)
        config.head_dim = head_dim
        return getattr(hf, f"{kind}ForCausalLM")(config)


def _qwen2_5_vl() -> tuple[Any, Any]:
    from tests.families import qwen2_5_vl

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return qwen2_5_vl()


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
RANDOM: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2.5-vl": _qwen2_5_vl,
    "llama": lambda: (random_text_model("Llama"), None),
    "llama-64": lambda: (random_text_model("Llama", 64), None),
    "mistral": lambda: (random_text_model("Mistral", sliding_window=None), None),
    "qwen2": lambda: (random_text_model("Qwen2"), None),
    "sliding": lambda: (
        random_text_model("Ministral", layer_types=SLIDING, sliding_window=32, rope_parameters=ROPE),
        None,
    ),
}


@lru_cache
def numbers(lengths: tuple[int, ...], new: int = NEW) -> list[Ask]:
    """Requests of so many random tokens, for models without a tokenizer."""
    rng = np.random.default_rng(11)
    return [Ask("", (), new, tuple(rng.integers(3, 64, length).tolist())) for length in lengths]


@lru_cache(maxsize=16)
def checkpoint(name: str) -> Path:
    """A checkpoint as vLLM reads it: transformers 5 saves LLaVA's vision tower under names without `vision_model`."""
    if name in RANDOM:
        folder = Path(os.environ["SPARSEMM_TEST_FOLDER"]) / name
        model, processor = RANDOM[name]()
        model.float().save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        if name == "sliding":  # vLLM has the model under the older name
            config = folder / "config.json"
            config.write_text(config.read_text().replace("MinistralForCausalLM", "MistralForCausalLM"))
        return folder
    folder = CHECKPOINTS / name
    weights = load_file(folder / "model.safetensors")
    inner = [key for key in weights if "vision_tower." in key and "vision_model." not in key]
    if not inner:
        return folder
    changed = Path(os.environ["SPARSEMM_TEST_FOLDER"]) / name
    if not changed.exists():
        changed.mkdir()
        for file in folder.iterdir():
            if file.name != "model.safetensors":
                (changed / file.name).write_bytes(file.read_bytes())
        renamed = {key.replace("vision_tower.", "vision_tower.vision_model."): weights.pop(key) for key in inner}
        save_file(weights | renamed, changed / "model.safetensors", metadata={"format": "pt"})
    return changed


@lru_cache(maxsize=2)
def loaded(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """A checkpoint in transformers, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if name in RANDOM:
        model, processor = RANDOM[name]()
        return model.to(dtype).eval(), processor
    folder = CHECKPOINTS / name
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


def table(name: str, folder: Path, seed: int = 5) -> Path:
    """A score table of a checkpoint, with a few strong heads."""
    config = loaded(name)[0].config
    text = config.get_text_config()
    shape = (text.num_hidden_layers, text.num_attention_heads)
    scores = np.random.default_rng(seed).random((1, *shape)) ** 6
    header = {
        "model": name,
        "revision": None,
        "fingerprint": fingerprint(config),
        "num_kv_heads": text.num_key_value_heads,
    }
    path = folder / f"{name}.safetensors"
    ScoreTable.from_samples(scores, np.zeros(shape, dtype=np.int64), header).save(path)
    return path


def make_champion(store: Path, key: str, path: Path) -> str:
    """Registers a score table as `sparsemm publish` does, makes it champion, and returns the registry's address."""
    from mlflow import MlflowClient

    from sparsemm.files import sha256_file, write_json
    from sparsemm.registry import manifest

    uri, name, file = f"sqlite:///{store / 'mlflow.db'}", f"visual-heads.{key}", f"scores/{key}.safetensors"
    client = MlflowClient(uri, registry_uri=uri)
    if client.get_experiment_by_name("sparsemm") is None:
        client.create_experiment("sparsemm", artifact_location=(store / "files").as_uri())
        client.create_registered_model(name)
    experiment = client.get_experiment_by_name("sparsemm")
    assert experiment is not None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "scores").mkdir()
        (folder / file).write_bytes(path.read_bytes())
        write_json(folder / manifest.NAME, manifest.build(folder, table=file))
        tags = {"table_sha256": sha256_file(path), "manifest_sha256": sha256_file(folder / manifest.NAME)}
        run = client.create_run(experiment.experiment_id).info.run_id
        client.log_artifacts(run, str(folder), manifest.FOLDER)
    version = client.create_model_version(name, f"runs:/{run}/{manifest.FOLDER}", run_id=run, tags=tags)
    client.set_registered_model_alias(name, "champion", version.version)
    return uri


def prompt(name: str, ask: Ask) -> str:
    """The chat prompt of a request."""
    processor = loaded(name)[1]
    content = [{"type": "image"} for _ in ask.pages] + [{"type": "text", "text": ask.text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def vllm_prompt(name: str, ask: Ask) -> dict[str, Any]:
    """A request as vLLM takes it."""
    if ask.ids:
        return {"prompt_token_ids": list(ask.ids)}
    text = {"prompt": prompt(name, ask)}
    return text | {"multi_modal_data": {"image": list(ask.pages)}} if ask.pages else text


def answer(name: str, ask: Ask, **cache: Any) -> tuple[list[int], list[float], int]:
    """`_answer`, remembered."""
    return _answer(name, ask, tuple(sorted(cache.items())))


@lru_cache(maxsize=4096)
@torch.no_grad()
def _answer(name: str, ask: Ask, cache: tuple[tuple[str, Any], ...]) -> tuple[list[int], list[float], int]:
    """The right tokens of a request, how far the best logit was ahead at each, and the prompt's length."""
    from sparsemm.prompts import encode

    model, processor = loaded(name)
    if ask.ids:
        inputs = {
            "input_ids": torch.tensor([ask.ids]),
            "attention_mask": torch.ones(1, len(ask.ids), dtype=torch.int64),
        }
    else:
        inputs = encode(processor, [list(ask.pages)], [prompt(name, ask)])
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    options = dict(cache)
    if "scores" in options:
        options["scores"] = ScoreTable.load(options["scores"])
    past = sparsemm.compressed_cache(model, **options)
    out = model.generate(
        **inputs,
        past_key_values=past,
        max_new_tokens=ask.new,
        min_new_tokens=ask.new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    length = inputs["input_ids"].shape[1]
    best = [logits[0].topk(2).values for logits in out.logits]
    return out.sequences[0, length:].tolist(), [float(two[0] - two[1]) for two in best], length


@contextmanager
def engine(name: str | Path, compress: dict[str, Any] | None, **options: Any) -> Iterator[Any]:
    """An engine in this process; afterwards every block has come back, whatever the test did."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    folder = checkpoint(name) if isinstance(name, str) else name
    defaults = dict(
        dtype="float32",
        enforce_eager=True,
        block_size=16,
        max_model_len=512,
        kv_cache_memory_bytes=1 << 28,
        num_gpu_blocks_override=600,
        enable_prefix_caching=False,
        skip_mm_profiling=True,
        mm_processor_cache_gb=0,
        seed=0,
        disable_log_stats=True,
    )
    additional = {} if compress is None else {"additional_config": {"sparsemm": compress}}
    if not list(folder.glob("tokenizer*")):
        defaults["skip_tokenizer_init"] = True
    gc.freeze()  # vLLM collects garbage ten times, and what is imported takes it a second each
    llm = LLM(str(folder), **defaults | additional | options)
    try:
        yield llm
        core = llm.llm_engine.engine_core
        if hasattr(core, "engine_core"):
            scheduler = core.engine_core.scheduler
            core.engine_core.step()  # frees what the last step finished
            pool = scheduler.kv_cache_manager.block_pool
            assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "blocks are lost"
            for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
                assert not getattr(manager, "held", {}), "requests are not forgotten"
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def run(llm: Any, name: str, requests: list[Ask], **options: Any) -> list[list[int]]:
    """The tokens that an engine answers with."""
    from vllm import SamplingParams

    parameters = [SamplingParams(temperature=0, max_tokens=ask.new, min_tokens=ask.new, **options) for ask in requests]
    outputs = llm.generate([vllm_prompt(name, ask) for ask in requests], parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def assert_answers(name: str, requests: list[Ask], answers: list[list[int]], **cache: Any) -> int:
    """Fails unless every answer is right up to a tie; returns how many are equal to the last token."""
    equal = 0
    for number, (ask, tokens) in enumerate(zip(requests, answers, strict=True)):
        right, margin, _ = answer(name, ask, **cache)
        wrong = next((i for i, (a, b) in enumerate(zip(tokens, right, strict=True)) if a != b), None)
        assert wrong is None or margin[wrong] < TIE, json.dumps(
            {"request": number, "token": wrong, "margin": margin[wrong], "answer": tokens, "right": right}
        )
        equal += wrong is None
    return equal
