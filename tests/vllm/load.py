"""Many requests with pages to vLLM's OpenAI server, some from clients that leave: `python -m tests.vllm.load`.

Needs the environment of `make vllm`. Every answer is compared with the right one, and the server's memory, blocks and
metrics are looked at after every hundred. The counts are kept in a JSON file: a run that was stopped goes on from
there, with a new server.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.vllm import test_server
from tests.vllm.engines import TIE, Ask, answer, asks, loaded, table, texts

QWEN = test_server.QWEN
PART = 100  # requests between two looks at the server
LEAVES = 10  # every such client leaves after the first words
PAGES, LENGTHS, NEW = 24, (5, 30, 90), (4, 12, 20)
BLOCKS = 120  # of the pool: a few prompts, so that requests are preempted
CLIENTS = 12


def requests() -> list[Ask]:
    """The different requests, which are asked again and again."""
    return [Ask(one.text, one.pages, new) for new in NEW for one in asks(PAGES) + texts(LENGTHS)]


def right_texts(cache: dict[str, Any]) -> list[set[str]]:
    """The right text of every request; several where two tokens are worth the same."""
    tokenizer = loaded(QWEN)[1].tokenizer
    result = []
    for ask in requests():
        tokens, margins, _ = answer(QWEN, Ask(ask.text, ask.pages, max(NEW)), **cache)
        tied = any(margin < TIE for margin in margins[: ask.new])
        text = tokenizer.decode(tokens[: ask.new], skip_special_tokens=True).strip()
        result.append(set() if tied else {text})
    return result


def ask_server(address: str, number: int, pool: list[Ask], right: list[set[str]]) -> str:
    """Sends one request; "right", "tied", "wrong", "left" or "refused" says what became of it."""
    which = (number * 7919) % len(pool)
    leaves = number % LEAVES == LEAVES - 1
    sent = test_server.post(address, test_server.body(pool[which], stream=leaves))
    try:
        with urllib.request.urlopen(sent, timeout=600) as response:
            if leaves:
                response.readline()
                return "left"
            text = json.load(response)["choices"][0]["message"]["content"].strip()
    except urllib.error.HTTPError as error:
        # A page that was first seen in a request that was aborted at once: vLLM asks to send it again.
        return "refused" if error.code in (500, 503) else "wrong"
    return "tied" if not right[which] else "right" if text in right[which] else "wrong"


def resident(process: psutil.Process) -> int:
    """MiB that a process and its children hold."""
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) >> 20


def main() -> None:
    """Sends what is missing of the requests, a part at a time, and prints every part."""
    parser = argparse.ArgumentParser(prog="python -m tests.vllm.load", description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--state", type=Path, required=True, help="JSON file that is written after every part")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new part after so many seconds")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: exit("stopped"))  # the server is stopped, too
    state = json.loads(args.state.read_text()) if args.state.exists() else {"done": 0, "servers": 0, "parts": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = dict(method="sparsemm", budget=48, window=8, scores=str(table(QWEN, folder)))
        pool, right = requests(), right_texts(cache)
        options = ["--num-gpu-blocks-override", str(BLOCKS), "--max-num-seqs", str(CLIENTS), "--max-model-len", "256"]
        with test_server.server(QWEN, cache, *options, log=folder / "log") as address:
            (process,) = psutil.Process().children()
            state["servers"] += 1
            while state["done"] < args.requests and time.monotonic() - began < args.seconds:
                start = time.monotonic()
                numbers = range(state["done"], min(state["done"] + PART, args.requests))
                with ThreadPoolExecutor(CLIENTS) as clients:
                    results = list(clients.map(lambda n: ask_server(address, n, pool, right), numbers))
                end = time.monotonic() + 120
                while test_server.metrics(address)["sparsemm:kv_bytes_held"] > 0 and time.monotonic() < end:
                    time.sleep(0.2)
                now = test_server.metrics(address)
                part = {name: results.count(name) for name in ("right", "tied", "wrong", "left", "refused")}
                part |= {"server": state["servers"], "seconds": round(time.monotonic() - start, 1)}
                part |= {"MiB": resident(process), "bytes held": now["sparsemm:kv_bytes_held"]}
                names = ("requests_compressed", "requests_short", "requests_ended_early")
                part |= {name: now[f"sparsemm:{name}_total"] for name in names}
                part["preemptions"] = sum(v for k, v in now.items() if k.startswith("vllm:num_preemptions_total"))
                state["done"] += len(numbers)
                state["parts"].append(part)
                args.state.write_text(json.dumps(state, indent=1) + "\n")
                print(state["done"], part, flush=True)
    wrong = sum(part["wrong"] for part in state["parts"])
    held = sum(part["bytes held"] > 0 for part in state["parts"])
    print(f"{state['done']} requests, {wrong} wrong, {held} parts after which blocks were held")
    raise SystemExit(bool(wrong or held))


if __name__ == "__main__":
    main()
