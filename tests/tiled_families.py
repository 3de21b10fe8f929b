"""Tiny models of random weights and their own processors: InternVL, Gemma 3, Idefics3, SmolVLM, Pixtral, Mistral 3."""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

TEXT: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=4096,
    initializer_range=0.3,
    bos_token_id=2,
    eos_token_id=3,
    pad_token_id=0,
)
VISION: dict[str, Any] = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
NORMAL: dict[str, Any] = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def tokenizer(named: dict[str, str], *special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; `named` special tokens are its attributes too."""
    tokens = ["<pad>", "<unk>", "<s>", "</s>", *named.values(), *special]
    vocabulary = {token: i for i, token in enumerate([*tokens, *string.ascii_letters + string.digits + " \n:.,?"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named,
    )


def template(image: str) -> str:
    """A chat template: what the user says between markers; `image` stands for an image."""
    return (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: "
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )


def finish(model: Any) -> Any:
    """Random weights everywhere, also where the class begins with zeros or tiny ones; greedy generation."""
    generator = torch.Generator().manual_seed(0)
    for name, weights in model.named_parameters():
        if weights.ndim > 1 and "embed_tokens" not in name:
            torch.nn.init.normal_(weights.data, std=0.3, generator=generator)
    generation = model.generation_config
    generation.do_sample, generation.eos_token_id, generation.pad_token_id = False, 3, 0
    return model.eval()


@lru_cache
def internvl() -> tuple[Any, Any]:
    """Tiles of 28 px, patches of 7 px, 2 x 2 tokens a tile; at most six tiles."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer(named)
    side = {"height": 28, "width": 28}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=side, crop_to_patches=True, max_patches=6, **NORMAL),
        words,
        transformers.InternVLVideoProcessor(size=side, **NORMAL),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>"),
    )
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(vocab_size=len(words), **TEXT),
        vision_config=transformers.InternVLVisionConfig(**VISION, image_size=28, patch_size=7),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return finish(transformers.InternVLForConditionalGeneration(config)), processor


class PanAndScan(transformers.Gemma3Processor):
    """Gemma 3's processor, called as it is for pan and scan."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        crops = dict(do_pan_and_scan=True, pan_and_scan_min_crop_size=16, pan_and_scan_max_num_crops=4)
        return super().__call__(images, text, **crops, pan_and_scan_min_ratio_to_activate=1.2, **options)


@lru_cache
def gemma3(pan_and_scan: bool = False) -> tuple[Any, Any]:
    """56 px, patches of 7 px, of which 2 x 2 are pooled: 4 x 4 tokens; sliding, full and sliding attention."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer(named)
    processor = (PanAndScan if pan_and_scan else transformers.Gemma3Processor)(
        transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}, **NORMAL),
        words,
        chat_template=template("<start_of_image>"),
        image_seq_length=16,
    )
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = transformers.Gemma3TextConfig(
        vocab_size=len(words), layer_types=kinds, sliding_window=24, query_pre_attn_scalar=8, **TEXT
    )
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=56, patch_size=7, vision_use_head=False),
        mm_tokens_per_image=16,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
    )
    return finish(transformers.Gemma3ForConditionalGeneration(config)), processor


IDEFICS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
MARKERS = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]


@lru_cache
def idefics3() -> tuple[Any, Any]:
    """Tiles of 30 px of which patches of 7 px cover 28, 2 x 2 tokens a tile; the longer side has four tiles."""
    words = tokenizer({}, *IDEFICS, *MARKERS)
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessor(size={"longest_edge": 120}, max_image_size={"longest_edge": 30}, **NORMAL),
        words,
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(vocab_size=len(words), **TEXT),
        vision_config=transformers.Idefics3VisionConfig(**VISION, image_size=30, patch_size=7),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return finish(transformers.Idefics3ForConditionalGeneration(config)), processor


@lru_cache
def smolvlm() -> tuple[Any, Any]:
    """As `idefics3`, but patches of 8 px, 3 x 3 tokens a tile of 48 px, and a longer side of three tiles and a part."""
    words = tokenizer({}, *IDEFICS, *MARKERS)
    size, tile = {"longest_edge": 160}, {"longest_edge": 48}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size=size, max_image_size=tile, **NORMAL),
        words,
        transformers.SmolVLMVideoProcessor(size=size, max_image_size=tile, **NORMAL),
        image_seq_len=9,
        chat_template=template("<image>"),
    )
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(vocab_size=len(words), **TEXT),
        vision_config=transformers.SmolVLMVisionConfig(**VISION, image_size=48, patch_size=8),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return finish(transformers.SmolVLMForConditionalGeneration(config)), processor


def _pixtral(merge: int) -> tuple[Any, Any, Any]:
    words = tokenizer({}, "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(
            size={"longest_edge": 112}, patch_size={"height": 7 * merge, "width": 7 * merge}, **NORMAL
        ),
        words,
        patch_size=7,
        spatial_merge_size=merge,
        chat_template=template("[IMG]"),
    )
    vision = transformers.PixtralVisionConfig(**VISION, image_size=112, patch_size=7)
    return processor, transformers.MistralConfig(vocab_size=len(words), sliding_window=None, **TEXT), vision


@lru_cache
def pixtral() -> tuple[Any, Any]:
    """Pixtral as a LLaVA model: patches of 7 px, the longer side at most 112 px."""
    processor, text, vision = _pixtral(1)
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return finish(transformers.LlavaForConditionalGeneration(config)), processor


@lru_cache
def mistral3() -> tuple[Any, Any]:
    """Mistral 3: patches of 7 px, of which 2 x 2 are merged."""
    processor, text, vision = _pixtral(2)
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return finish(transformers.Mistral3ForConditionalGeneration(config)), processor
