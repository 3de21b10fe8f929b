"""Tiny random models of every family: the real classes with the real processors, made in a moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import transformers as hf
from tokenizers import pre_tokenizers

from sparsemm.training.architectures import QWEN_SPECIAL, build, character_tokenizer, turn_template
from tests import tiled_families

CHATML = ("", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n")
NORMAL: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 3, 6, 2, 16
Made = tuple[Any, Any]


def text_sizes(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Arguments of a text configuration of the Llama kind; weights so large that heads look at single tokens."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def tiles(side: int, most: int) -> list[list[int]]:
    """Pinpoints (height, width) of every canvas of up to `most` x `most` tiles."""
    return [[rows * side, columns * side] for rows in range(1, most + 1) for columns in range(1, most + 1)]


def llava_next_llama3() -> Made:
    """LLaVA-NeXT over Llama 3: GQA, rope_theta 500000, its own turns, two stop tokens."""
    turns = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = character_tokenizer(["<image>", *turns], eos="<|end_of_text|>")
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    text = hf.LlamaConfig(**text_sizes(tokenizer, rope_parameters=rope))
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    pinpoints = [size for size in tiles(56, 2) if size != [112, 112]] + [[112, 112], [168, 56], [56, 168]]
    config = hf.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
            image_grid_pinpoints=pinpoints,
            **NORMAL,
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=turn_template(
            "{{ bos_token }}", header.format("user"), header.format("assistant"), "<|eot_id|>", "<image>\n"
        ),
    )
    model = hf.LlavaNextForConditionalGeneration._from_config(config, dtype=torch.float32)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    model.generation_config.eos_token_id = ends
    return model, processor


def llava_onevision() -> Made:
    """LLaVA-OneVision over Qwen2, tiles of 4 x 4 tokens, at most four tiles' worth of them ("anyres_max_4")."""
    tokenizer = character_tokenizer(["<|im_start|>", "<image>", "<video>"], eos="<|im_end|>")
    vision = hf.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=58,  # as 384 of the real one, it is not a multiple of 14
        patch_size=14,
        vision_use_head=False,
    )
    sizes = text_sizes(tokenizer)
    del sizes["head_dim"]
    config = hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**sizes),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=tiles(58, 4),
        vision_aspect_ratio="anyres_max_4",
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 58, "width": 58}, image_grid_pinpoints=tiles(58, 4), **NORMAL
        ),
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 58, "width": 58}, **NORMAL),
        tokenizer=tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=turn_template(*CHATML, image="<image>\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def qwen_ids(tokenizer: Any) -> dict[str, Any]:
    """Arguments of a Qwen-VL configuration that name its special tokens."""
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def qwen_parts(tokenizer: Any, patch: int, video_processor: Any) -> dict[str, Any]:
    """Arguments of a Qwen-VL processor whose images become 1 to 64 tokens."""
    side = 2 * patch
    size = {"shortest_edge": side**2, "longest_edge": 64 * side**2}
    geometry: dict[str, Any] = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": size, **NORMAL}
    return {
        "image_processor": hf.Qwen2VLImageProcessor(**geometry),
        "video_processor": video_processor(**geometry),
        "tokenizer": tokenizer,
        "chat_template": turn_template(*CHATML, image="<|vision_start|><|image_pad|><|vision_end|>"),
    }


def qwen2_5_vl() -> Made:
    """Qwen2.5-VL: a vision tower of windows of 2 x 2 tokens, but for its last layer."""
    tokenizer = character_tokenizer(QWEN_SPECIAL, eos="<|im_end|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    sizes = text_sizes(tokenizer, rope_parameters=rope)
    del sizes["head_dim"]
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 7,
        "window_size": 28,
        "fullatt_block_indexes": [1],
        "out_hidden_size": HEADS * HEAD_DIM,
    }
    config = hf.Qwen2_5_VLConfig(text_config=sizes, vision_config=vision, **qwen_ids(tokenizer))
    processor = hf.Qwen2_5_VLProcessor(**qwen_parts(tokenizer, 7, hf.Qwen2VLVideoProcessor))
    return hf.Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def qwen3_vl() -> Made:
    """Qwen3-VL: q and k norms, interleaved M-RoPE, features of two vision layers added in the first two text layers."""
    tokenizer = character_tokenizer(QWEN_SPECIAL, eos="<|im_end|>")
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": HEADS * HEAD_DIM,
    }
    config = hf.Qwen3VLConfig(
        text_config=text_sizes(tokenizer, rope_parameters=rope), vision_config=vision, **qwen_ids(tokenizer)
    )
    processor = hf.Qwen3VLProcessor(**qwen_parts(tokenizer, 8, hf.Qwen3VLVideoProcessor))
    return hf.Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def byte_tokenizer() -> Any:
    """Qwen3.5's own tokenizer, which transformers takes whatever a checkpoint names, over single bytes."""
    special = ["<|endoftext|>", "<|im_end|>", *QWEN_SPECIAL]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = hf.Qwen3_5Tokenizer(vocab=vocabulary, merges=[], eos_token="<|im_end|>", padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    return tokenizer


def qwen3_5(layer_types: list[str], experts: bool = False) -> Made:
    """Qwen3.5: linear attention but for some layers, whose heads are gated and turn half of their dimensions."""
    tokenizer = byte_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    sizes = text_sizes(tokenizer, rope_parameters=rope | {"partial_rotary_factor": 0.5}) | linear
    sizes |= {"num_hidden_layers": len(layer_types), "layer_types": layer_types, "linear_value_head_dim": 8}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "out_hidden_size": HEADS * HEAD_DIM,
    }
    if experts:
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        sizes |= {"shared_expert_intermediate_size": 32}
    config = hf.Qwen3_5MoeConfig if experts else hf.Qwen3_5Config
    model = hf.Qwen3_5MoeForConditionalGeneration if experts else hf.Qwen3_5ForConditionalGeneration
    processor = hf.Qwen3VLProcessor(**qwen_parts(tokenizer, 8, hf.Qwen3VLVideoProcessor))
    return model(config(text_config=sizes, vision_config=vision, **qwen_ids(tokenizer))), processor


def small(name: str) -> Made:
    """A small architecture, untrained, its layers as loud as those above: answers vary, and look at something."""
    model, processor = build(name)
    with torch.no_grad():
        for weight in model.model.language_model.layers.parameters():
            weight.mul_(10.0 if weight.ndim == 2 else 1.0)
    return model, processor


# Name of a model -> its family, and what makes it.
MODELS: dict[str, tuple[str, Callable[[], Made]]] = {
    "llava-next-vicuna": ("llava_next", lambda: small("tiny-llava-next-vicuna")),
    "llava-next-mistral": ("llava_next", lambda: small("tiny-llava-next-mistral")),
    "llava-next-llama3": ("llava_next", llava_next_llama3),
    "llava-onevision": ("llava_onevision", llava_onevision),
    "qwen2-vl": ("qwen2_vl", lambda: small("tiny-qwen2-vl")),
    "qwen2.5-vl": ("qwen2_5_vl", qwen2_5_vl),
    "qwen3-vl": ("qwen3_vl", qwen3_vl),
    "qwen3.5": ("qwen3_5", lambda: qwen3_5(["linear_attention", "full_attention"] * 2)),
    "qwen3.5-moe": ("qwen3_5", lambda: qwen3_5(["full_attention", *["linear_attention"] * 2], experts=True)),
    **tiled_families.MODELS,
}


@lru_cache
def made(name: str) -> Made:
    """(model in fp32 and eval mode, processor), the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = MODELS[name][1]()
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.do_sample = False
    return model.eval(), processor
