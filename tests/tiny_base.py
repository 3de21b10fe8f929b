"""A package that holds a tiny GGUF language model, as the real base's package holds a large one."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sparsemm.assemble.base import Pin
from sparsemm.files import sha256_file

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the", "1 2")
SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tokens() -> list[str]:
    """The vocabulary: special tokens, bytes, merges."""
    return [*SPECIAL, *sorted(bytes_to_unicode().values()), *(merge.replace(" ", "") for merge in MERGES)]


def language_model(seed: int = 0) -> LlamaForCausalLM:
    """The language model that the package holds, fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokens()), max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True, **SIZES
        )
        return LlamaForCausalLM(config).eval()


def llama_cpp_order(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to query and key projections."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, architecture: str = "llama") -> None:
    """Write a model as llama.cpp's converter would, unquantised."""
    config, vocabulary = model.config, tokens()
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in model.model.state_dict().items():
        if name.endswith("q_proj.weight"):
            value = llama_cpp_order(value, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            value = llama_cpp_order(value, config.num_key_value_heads)
        name = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}.get(name, name)
        if name.startswith("layers."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            name = f"blk.{layer}.{_PARTS[part]}.weight"
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def install(site: Path) -> Pin:
    """Make a folder a site-packages with the package tiny-base 1.0 in it; the pin of its language model."""
    (site / "tiny_base-1.0.dist-info").mkdir(parents=True)
    (site / "tiny_base-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n")
    (site / "tiny_base").mkdir()
    file = "tiny_base/model.gguf"
    write_gguf(site / file, language_model())
    return Pin("tiny-base", "1.0", file, sha256_file(site / file))
