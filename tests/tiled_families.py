"""Tiny random models of the families that cut images into tiles or rows, made by the real classes and processors."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_num2words_available

from sparsemm.training.architectures import character_tokenizer, turn_template

TURNS = ("{{ bos_token }}", "user\n", "assistant\n", "\n")
NORMAL: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
Made = tuple[Any, Any]


def named_tokenizer(named: dict[str, str], *special: str) -> PreTrainedTokenizerFast:
    """A character tokenizer whose `named` special tokens are attributes of it, as some processors want them."""
    plain = character_tokenizer([*named.values(), *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        unk_token=plain.unk_token,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named,
    )


def text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Arguments of a small text configuration whose heads look at single tokens."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "initializer_range": 0.4,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def internvl() -> Made:
    """Tiles of 28 px, patches of 7 px, 2 x 2 tokens a tile; at most six tiles."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = named_tokenizer(named)
    side = {"height": 28, "width": 28}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=side, crop_to_patches=True, max_patches=6, **NORMAL),
        words,
        hf.InternVLVideoProcessor(size=side, **NORMAL),
        image_seq_length=4,
        chat_template=turn_template(*TURNS, image="<IMG_CONTEXT>"),
    )
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**text_sizes(words)),
        vision_config=hf.InternVLVisionConfig(**VISION, image_size=28, patch_size=7),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def gemma3() -> Made:
    """56 px, patches of 7 px, of which 2 x 2 are pooled: 4 x 4 tokens; sliding, full and sliding attention."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = named_tokenizer(named)
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": 56, "width": 56}, **NORMAL),
        words,
        chat_template=turn_template(*TURNS, image="<start_of_image>"),
        image_seq_length=16,
    )
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = hf.Gemma3TextConfig(
        layer_types=kinds, sliding_window=24, query_pre_attn_scalar=8, tie_word_embeddings=False, **text_sizes(words)
    )
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=56, patch_size=7, vision_use_head=False),
        mm_tokens_per_image=16,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
        tie_word_embeddings=False,  # tied ones say the last token again and again
    )
    model = hf.Gemma3ForConditionalGeneration._from_config(config, dtype=torch.float32)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)  # the class has zeros
    return model, processor


IDEFICS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
MARKERS = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]


def idefics3() -> Made:
    """Tiles of 30 px of which patches of 7 px cover 28, 2 x 2 tokens a tile; the longer side has four tiles."""
    words = named_tokenizer({}, *IDEFICS, *MARKERS)
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(size={"longest_edge": 120}, max_image_size={"longest_edge": 30}, **NORMAL),
        words,
        image_seq_len=4,
        chat_template=turn_template(*TURNS, image="<image>"),
    )
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**text_sizes(words)),
        vision_config=hf.Idefics3VisionConfig(**VISION, image_size=30, patch_size=7),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return hf.Idefics3ForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def smolvlm() -> Made:
    """As `idefics3`, but patches of 8 px, 3 x 3 tokens a tile of 48 px, and a longer side of three tiles and a part."""
    words = named_tokenizer({}, *IDEFICS, *MARKERS)
    size, tile = {"longest_edge": 160}, {"longest_edge": 48}
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size=size, max_image_size=tile, **NORMAL),
        words,
        hf.SmolVLMVideoProcessor(size=size, max_image_size=tile, **NORMAL),
        image_seq_len=9,
        chat_template=turn_template(*TURNS, image="<image>"),
    )
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**text_sizes(words)),
        vision_config=hf.SmolVLMVisionConfig(**VISION, image_size=48, patch_size=8),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def _pixtral(merge: int) -> tuple[Any, Any, Any]:
    """Processor, text and vision configuration of a model that merges merge x merge patches."""
    words = named_tokenizer({}, "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    processor = hf.PixtralProcessor(
        hf.PixtralImageProcessor(
            size={"longest_edge": 112}, patch_size={"height": 7 * merge, "width": 7 * merge}, **NORMAL
        ),
        words,
        patch_size=7,
        spatial_merge_size=merge,
        chat_template=turn_template(*TURNS, image="[IMG]"),
    )
    vision = hf.PixtralVisionConfig(**VISION, image_size=112, patch_size=7)
    return processor, hf.MistralConfig(sliding_window=None, **text_sizes(words)), vision


def pixtral() -> Made:
    """Pixtral as a LLaVA model: patches of 7 px, the longer side at most 112 px."""
    processor, text, vision = _pixtral(1)
    config = hf.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return hf.LlavaForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def mistral3() -> Made:
    """Mistral 3: patches of 7 px, of which 2 x 2 are merged."""
    processor, text, vision = _pixtral(2)
    config = hf.Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return hf.Mistral3ForConditionalGeneration._from_config(config, dtype=torch.float32), processor


# Name of a model -> its family, and what makes it.
MODELS = {
    "internvl": ("internvl", internvl),
    "gemma3": ("gemma3", gemma3),
    "idefics3": ("idefics3", idefics3),
    "pixtral": ("pixtral", pixtral),
    "mistral3": ("pixtral", mistral3),
}
if is_num2words_available():  # SmolVLM's processor cannot do without
    MODELS["smolvlm"] = ("idefics3", smolvlm)
