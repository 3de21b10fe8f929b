"""Answers requests with vLLM engines of several budgets, in a process of an environment that has vLLM.

`python -m sparsemm.vllm.trial FOLDER` reads trial.json in the folder and writes answers.json beside it, so that
its caller needs no vLLM.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsemm.errors import EngineError
from sparsemm.files import write_json

TRIAL, ANSWERS = "trial.json", "answers.json"
BLOCK = 16  # rows of a block


@dataclass(frozen=True)
class Request:
    """One request of a trial.

    Attributes:
        prompt: text as the chat template writes it.
        images: names of image files in the trial's folder.
        max_new_tokens: at most so many tokens of an answer.
    """

    prompt: str
    images: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Trial:
    """What is asked of which engines.

    Attributes:
        checkpoint: folder or hub id.
        revision: of the checkpoint.
        dtype: of the model, such as float32.
        max_model_len: tokens of the longest prompt and its answer.
        engines: options of the plug-in by a name of the engine.
        requests: all are sent to every engine at once, and answered greedily.
    """

    checkpoint: str
    revision: str | None
    dtype: str
    max_model_len: int
    engines: dict[str, dict[str, Any]]
    requests: tuple[Request, ...]


def run(python: Path, trial: Trial, folder: Path) -> dict[str, list[str]]:
    """Runs a trial in a process of another environment, and returns the answers of every engine in order.

    Args:
        python: interpreter that has vLLM and this package.
        folder: holds the images; the trial, its answers and its log are written there.

    Raises:
        EngineError: if the process fails, with the last lines of its log.
    """
    write_json(folder / TRIAL, asdict(trial))
    log = folder / "vllm.log"
    command = [str(python), "-m", "sparsemm.vllm.trial", str(folder)]
    variables = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    try:
        with open(log, "w", encoding="utf-8") as output:
            code = subprocess.run(command, stdout=output, stderr=output, env=variables, check=False).returncode
    except OSError as error:
        hint = "install vLLM there, for instance with `make vllm`"
        raise EngineError(f"cannot be started: {error}", where=str(python), hint=hint) from error
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise EngineError(f"vLLM ended with {code}: {' | '.join(last)}", where=str(folder), hint=f"see {log}")
    answers: dict[str, list[str]] = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    return answers


def answer(trial: dict[str, Any], folder: Path) -> dict[str, list[str]]:
    """The text that every engine answers each request with; engines run one after another in this process."""
    from PIL import Image
    from vllm import SamplingParams

    prompts: list[Any] = []
    for request in trial["requests"]:
        images = [Image.open(folder / name).convert("RGB") for name in request["images"]]
        prompts.append({"prompt": request["prompt"]} | ({"multi_modal_data": {"image": images}} if images else {}))
    parameters = [SamplingParams(temperature=0, max_tokens=each["max_new_tokens"]) for each in trial["requests"]]
    options = {name: trial[name] for name in ("revision", "dtype", "max_model_len")}
    most = max(len(request["images"]) for request in trial["requests"])
    answers = {}
    for name, compress in trial["engines"].items():
        with engine(trial["checkpoint"], compress, most, enforce_eager=True, **options) as llm:
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
        answers[name] = [output.outputs[0].text for output in outputs]
    return answers


@contextmanager
def engine(checkpoint: str, compress: dict[str, Any], images: int, **options: Any) -> Iterator[Any]:
    """An engine with options of the plug-in, for requests with so many images; other options are vLLM's."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        checkpoint,
        block_size=BLOCK,
        kv_cache_memory_bytes=1 << 30,
        limit_mm_per_prompt={"image": images},
        skip_mm_profiling=True,
        additional_config={"sparsemm": compress},
        **options,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers the trial of a folder."""
    parser = argparse.ArgumentParser(prog="python -m sparsemm.vllm.trial", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds trial.json and its images; answers.json is written there")
    folder = parser.parse_args(arguments).folder
    write_json(folder / ANSWERS, answer(json.loads((folder / TRIAL).read_text(encoding="utf-8")), folder))


if __name__ == "__main__":
    main()
