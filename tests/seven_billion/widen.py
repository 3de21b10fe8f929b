"""A checkpoint with the text sizes of Qwen2-VL-7B that says what tiny-qwen2-vl says: its weights, set into larger ones.

The hidden state uses its first dimensions only, the norms make up for the others, which are zero; a head of 12
dimensions lies in one of 128 so that its rotary frequencies are the same; what is added looks and writes nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()
from transformers import AutoConfig, AutoModelForImageTextToText  # noqa: E402

HIDDEN, LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 3584, 28, 28, 4, 128, 18944, 152064
APART = 8  # rotary frequencies of the large head between two of the small one
SHARD = 2e9  # bytes


class Widen:
    """Weights of the large model by name, made from those of the small one."""

    def __init__(self, source: Path) -> None:
        self.old = load_file(source / "model.safetensors")
        self.config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
        text = self.config["text_config"]
        self.hidden, self.layers = text["hidden_size"], text["num_hidden_layers"]
        self.heads, self.kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
        self.dim = self.hidden // self.heads
        half = torch.arange(self.dim // 2) * APART
        self.rotated, self.plain = torch.cat([half, half + HEAD_DIM // 2]), torch.arange(self.dim)
        self.random = torch.Generator().manual_seed(0)

    def large_config(self) -> dict[str, Any]:
        """config.json of the large model."""
        text = dict(self.config["text_config"])
        rope = text["rope_parameters"]
        text |= {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": QUERY_HEADS,
            "num_key_value_heads": KV_HEADS,
            "intermediate_size": INTERMEDIATE,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32768,
            "rms_norm_eps": text["rms_norm_eps"] * self.hidden / HIDDEN,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention"] * LAYERS,
            "dtype": "bfloat16",
            "rope_parameters": rope
            | {"rope_theta": rope["rope_theta"] ** (HEAD_DIM / (self.dim * APART)), "mrope_section": [16, 16, 32]},
        }
        vision = self.config["vision_config"] | {"hidden_size": HIDDEN}
        return self.config | {
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }

    def weight(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The weight `name` of the large model, bf16."""
        small = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        was = self.old.get(small, self.old["model.embed_tokens.weight"] if name == "lm_head.weight" else None)
        new = torch.zeros(shape, dtype=torch.bfloat16)
        if "norm" in name and "visual" not in name:
            if was is None:
                return new.fill_(1)
            new[: self.hidden] = (was.float() * (self.hidden / HIDDEN) ** 0.5).bfloat16()
            return new
        part = name.split(".")[-2]
        if was is None:  # of a layer more: it looks somewhere and writes nothing
            silent = part in ("o_proj", "down_proj") or name.endswith("bias")
            return new if silent else new.normal_(0, 0.02, generator=self.random)
        if part == "q_proj":
            was = was.float() * (HEAD_DIM / self.dim) ** 0.5  # logits are divided by the root of the head dimension
        rows, columns = self._place(part)
        was = was.bfloat16()
        if was.dim() == 2 and name.startswith(("model.language_model", "lm_head")):
            rows = torch.arange(was.shape[0]) if rows is None else rows
            columns = torch.arange(was.shape[1]) if columns is None else columns
            new[rows[:, None], columns] = was
        elif rows is not None:
            new[rows] = was
        else:
            new[: was.shape[0]] = was
        return new

    def _place(self, part: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Rows and columns of the large matrix that the small one fills; None is the first ones."""
        group, large = self.heads // self.kv_heads, QUERY_HEADS // KV_HEADS
        queries = [head // group * large + head % group for head in range(self.heads)]
        if part == "q_proj":
            return torch.cat([head * HEAD_DIM + self.rotated for head in queries]), None
        if part == "k_proj":
            return torch.cat([head * HEAD_DIM + self.rotated for head in range(self.kv_heads)]), None
        if part == "v_proj":
            return torch.cat([head * HEAD_DIM + self.plain for head in range(self.kv_heads)]), None
        if part == "o_proj":
            return None, torch.cat([head * HEAD_DIM + self.plain for head in queries])
        return None, None


def widen(source: Path, target: Path) -> None:
    """Write the large checkpoint (15 GB) made from the folder of tiny-qwen2-vl."""
    target.mkdir(parents=True, exist_ok=True)
    made = Widen(source)
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors", "card.json"):
            shutil.copy(path, target)
    (target / "config.json").write_text(json.dumps(made.large_config()), encoding="utf-8")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(target), dtype=torch.bfloat16)
    shards: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, weight in model.state_dict().items():
        if size > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = weight.shape
        size += weight.nbytes
    where = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: made.weight(n, shape) for n, shape in names.items()}, target / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    total = sum(weight.nbytes for weight in model.state_dict().values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
