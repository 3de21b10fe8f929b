"""Builds the small checkpoints' architectures from unmodified Hugging Face classes, with tokenizer and processor."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sparsemm.datasets.synthetic import ANCHORS
from sparsemm.errors import ModelError

LAYERS, QUERY_HEADS = 6, 16  # sizes of the tiny models
TILE, PATCH = 84, 14  # pixels; a visual token is 14 x 14 px and holds two characters of a page at scale 1
NAMES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl", "small-qwen2-vl")


@dataclass(frozen=True)
class QwenSizes:
    """Sizes of a Qwen2-VL model; a head has hidden / query_heads dimensions, two per M-RoPE frequency."""

    layers: int
    query_heads: int
    hidden: int
    intermediate: int
    mrope_section: tuple[int, int, int]
    vision_layers: int
    vision_hidden: int


QWEN_SIZES = {
    "tiny-qwen2-vl": QwenSizes(LAYERS, QUERY_HEADS, 192, 384, (2, 2, 2), 2, 96),
    "small-qwen2-vl": QwenSizes(8, 16, 256, 512, (2, 3, 3), 2, 128),
}

# The special tokens of an Idefics3 processor besides the image's: the last ones stand before the tiles of a grid.
IDEFICS3_TOKENS = (
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
QWEN_SPECIAL = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_WORDS = ("USER", "ASSISTANT", "Read", "the", "page", "What", "is", "follows", "user", "assistant", "INST")
_TEMPLATES = {
    "tiny-llava-next-vicuna": ("{{ bos_token }}", "USER: ", "ASSISTANT:", " "),
    "tiny-llava-next-mistral": ("{{ bos_token }}", "[INST] ", "[/INST]", " "),
} | dict.fromkeys(QWEN_SIZES, ("", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"))
_IMAGE_TEXT = {"tiny-llava-next-vicuna": "<image>\n", "tiny-llava-next-mistral": "<image>\n"} | dict.fromkeys(
    QWEN_SIZES, "<|vision_start|><|image_pad|><|vision_end|>"
)


def turn_template(start: str, user: str, assistant: str, after: str, image: str) -> str:
    """Returns a Jinja chat template for messages whose content holds parts of type "image" and "text".

    `start` stands before the first message, `user` or `assistant` before a message of that role, `after` behind one of
    the user, and `image` for an image.
    """
    user, assistant, after, image = (text.replace("\n", "\\n") for text in (user, assistant, after, image))
    return (
        f"{start}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ '{user}' }}}}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        f"{{% endfor %}}{{{{ '{after}' }}}}"
        f"{{% else %}}{{{{ '{assistant}' }}}}"
        "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endif %}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{assistant}' }}}}{{% endif %}}"
    )


def chat_template(name: str) -> str:
    """Returns the Jinja chat template of a small checkpoint."""
    return turn_template(*_TEMPLATES[name], image=_IMAGE_TEXT[name])


def character_tokenizer(special: Sequence[str], characters: str = "", eos: str = "</s>") -> PreTrainedTokenizerFast:
    """Builds a tokenizer of single characters, in which anchors and instruction words are single tokens.

    The ids of special tokens follow <pad>, <unk>, <s> and `eos`, which ends an answer. `characters` are those besides
    the ones of pages and prompts.
    """
    special = ["<pad>", "<unk>", "<s>", eos, *special]
    letters = list(string.ascii_lowercase + string.digits + string.ascii_uppercase + " \n:.,?/-[]")
    vocabulary = {token: i for i, token in enumerate(special + letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in (*_WORDS, *ANCHORS)])
    core.add_tokens([AddedToken(c, normalized=False) for c in characters if c not in vocabulary])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Builds the tokenizer of a small checkpoint.

    The tiny models have the characters of pages and prompts. The small one, which also reads prose, has all of
    printable ASCII. Common characters have the same ids in both.
    """
    more = string.punctuation if name.startswith("small-") else ""
    if name in QWEN_SIZES:
        return character_tokenizer(QWEN_SPECIAL, more, "<|im_end|>")
    return character_tokenizer(["<image>"], more)


def _pixels(width_tiles: int, height_tiles: int) -> list[int]:
    return [height_tiles * TILE, width_tiles * TILE]


def llava_next(text: Any, tokenizer: PreTrainedTokenizerFast, template: str) -> tuple[Any, Any]:
    """Builds an untrained LLaVA-NeXT model with the small vision tower and the text config, and its processor."""
    pinpoints = [_pixels(1, 1), _pixels(2, 1), _pixels(1, 2), _pixels(2, 2)]
    vision = transformers.CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=96,
    )
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    image_processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=pinpoints,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    return transformers.LlavaNextForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def idefics3(text: Any, tokenizer: PreTrainedTokenizerFast, template: str) -> tuple[Any, Any]:
    """Builds an untrained Idefics3 model, whose class the first SmolVLM has too, with a small vision tower.

    An image is cut into tiles as it is: it is not scaled to a size of its own before. The text config's vocabulary has
    `IDEFICS3_TOKENS`. Returns the model and its processor.
    """
    vision = transformers.Idefics3VisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH // 2,
        hidden_act="quick_gelu",
    )
    config = transformers.Idefics3Config(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.get_vocab()["<image>"],
        scale_factor=2,
        tie_word_embeddings=True,
    )
    image_processor = transformers.Idefics3ImageProcessor(
        do_resize=False,
        max_image_size={"longest_edge": TILE},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tokens = (TILE // PATCH) ** 2
    processor = transformers.Idefics3Processor(image_processor, tokenizer, tokens, chat_template=template)
    return transformers.Idefics3ForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def _shared(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Returns the values that the configs of all text models share."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {"vocab_size": len(tokenizer), "max_position_embeddings": 2048, "tie_word_embeddings": True, **ids}


def _llava(name: str, tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    vicuna = name == "tiny-llava-next-vicuna"
    shared = _shared(tokenizer) | dict(
        hidden_size=128 if vicuna else 192,
        intermediate_size=384,
        head_dim=8 if vicuna else 16,  # with four KV heads of size 8 a model reads, but does not learn to answer
        num_hidden_layers=LAYERS,
        num_attention_heads=QUERY_HEADS,
    )
    text = (
        transformers.LlamaConfig(num_key_value_heads=QUERY_HEADS, **shared)
        if vicuna
        else transformers.MistralConfig(num_key_value_heads=QUERY_HEADS // 4, sliding_window=None, **shared)
    )
    return llava_next(text, tokenizer, chat_template(name))


def _qwen(name: str, tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    ids, sizes = tokenizer.get_vocab(), QWEN_SIZES[name]
    text = _shared(tokenizer) | dict(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.query_heads,
        num_key_value_heads=sizes.query_heads // 4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [*sizes.mrope_section]},
    )
    vision = dict(
        depth=sizes.vision_layers,
        embed_dim=sizes.vision_hidden,
        hidden_size=sizes.hidden,
        num_heads=4,
        mlp_ratio=2,
        patch_size=PATCH // 2,
        temporal_patch_size=2,
    )
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    size = {"shortest_edge": PATCH * PATCH, "longest_edge": 64 * PATCH * PATCH * 4}
    geometry: dict[str, Any] = dict(patch_size=PATCH // 2, temporal_patch_size=2, merge_size=2, size=size)
    normal: dict[str, Any] = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**geometry, **normal),
        video_processor=transformers.Qwen2VLVideoProcessor(**geometry, **normal),
        tokenizer=tokenizer,
        chat_template=chat_template(name),
    )
    return transformers.Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def base_name(name: str) -> str:
    """Returns the one of `NAMES` that a checkpoint's name begins with. Raises ModelError if there is none."""
    for base in NAMES:
        if name == base or name.startswith(f"{base}-"):
            return base
    raise ModelError(f"no small architecture is called {name!r}", hint=f"use one of {', '.join(NAMES)}")


def build(name: str, seed: int = 0) -> tuple[Any, Any]:
    """Builds an untrained small model in fp32, in eval mode, and its processor; deterministic in `seed`.

    Raises ModelError if the name is none of `NAMES`, perhaps with a suffix (as in tiny-qwen2-vl-mine).
    """
    base = base_name(name)
    tokenizer = build_tokenizer(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = (_qwen if base in QWEN_SIZES else _llava)(base, tokenizer)
    set_generation(model, tokenizer)
    return model.eval(), processor


def set_generation(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes a model answer greedily and end its answers with the tokenizer's end of sequence."""
    generation = model.generation_config
    generation.bos_token_id, generation.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.do_sample = False
