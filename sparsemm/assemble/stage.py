"""The assemble stage: writes an ordinary checkpoint folder from a base and its updates."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from sparsemm.assemble.updates import BASE, FROM_BASE, SCALE, UPDATES, load_tensors, read_pin
from sparsemm.errors import ModelError, ParamsError
from sparsemm.params import Params

TEXT = ("model.language_model.", "model.text_model.")  # of LLaVA-NeXT and of Idefics3
# Names of the parts in published checkpoints, which both transformers and vLLM read; those of Idefics3 are as they are.
_PUBLISHED = {
    TEXT[0]: "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "model.": "model.",
}


def run(params: Params, key: str, root: Path = Path(".")) -> Path:
    """Assembles a checkpoint of `assembled` in params.yaml in artifacts/checkpoints/KEY, and returns the folder.

    Raises ModelError if the base is not installed, or base and updates cannot be read or do not fit, and ParamsError if
    there is no such key.
    """
    if key not in params.assembled:
        keys = ", ".join(params.assembled) or "none yet"
        raise ParamsError(f"no checkpoint {key!r}", where="params.yaml: assembled", hint=f"known: {keys}")
    output = root / "artifacts" / "checkpoints" / key
    assemble(root / params.assembled[key].updates, output)
    return output


def language_model_before(params: Params, key: str, root: Path = Path(".")) -> LlamaForCausalLM | None:
    """Returns the language model of an assembled checkpoint before it was tuned; None for any other checkpoint.

    Raises ModelError if the base is not installed or cannot be read.
    """
    if key not in params.assembled:
        return None
    return read_pin(root / params.assembled[key].updates).base().model()


def assemble(updates: Path, output: Path) -> None:
    """Writes the checkpoint of a folder of updates and its base: fp16 weights, to be run in fp32.

    The same inputs give the same bytes, because products are computed in fp64 and rounded once. `output` is replaced as
    a whole. Raises ModelError if the base is not installed, or base and updates cannot be read or do not fit.
    """
    pin, tensors = read_pin(updates), load_tensors(updates)
    base = pin.base()
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        base.tokenizer().save_pretrained(partial)
        for path in updates.iterdir():
            if path.is_file() and path.name not in (UPDATES, BASE, *FROM_BASE):
                shutil.copyfile(path, partial / path.name)
        weights = merged(base.weights(), tensors, str(updates))
        save_file(weights, partial / "model.safetensors", {"format": "pt"})
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def merged(base: dict[str, torch.Tensor], updates: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Returns all weights of the checkpoint, fp16, by their published names.

    Args:
        base: fp32 weights of the language model, by their names in LlamaModel.
        updates: trained tensors, by their names in the multimodal model; `X.up` and `X.down` belong to `X.weight`.
        where: name of the updates, for messages.

    Raises:
        ModelError: if an update has no weight of its shape in the base, or a weight does not fit into fp16.
    """
    text = next((text for text in TEXT if any(name.startswith(text) for name in updates)), TEXT[0])
    whole = {text + name: value for name, value in base.items()}
    pairs = {name.removesuffix(".up"): value for name, value in updates.items() if name.endswith(".up")}
    for name, value in updates.items():
        layer = name.removesuffix(".down")
        if name.endswith(".up"):
            continue
        if layer == name:
            whole[name] = value
            continue
        weight, up = whole.get(f"{layer}.weight"), pairs.pop(layer, None)
        if weight is None or up is None or up.shape[1] != value.shape[0]:
            raise ModelError(f"the update of {layer} has no counterpart", where=where)
        product = up.to(torch.float64) @ value.to(torch.float64)
        if product.shape != weight.shape:
            sizes = f"{tuple(product.shape)}, not {tuple(weight.shape)}"
            raise ModelError(f"the update of {layer} has the shape {sizes}", where=where)
        whole[f"{layer}.weight"] = weight.to(torch.float64) + SCALE * product
    if pairs:
        raise ModelError(f"the update of {min(pairs)} has no counterpart", where=where)
    result = {}
    for name, value in whole.items():
        half = value.to(torch.float16).contiguous()
        if not half.isfinite().all():
            raise ModelError(f"{name} does not fit into fp16", where=where)
        start = next(start for start in _PUBLISHED if name.startswith(start))
        result[_PUBLISHED[start] + name.removeprefix(start)] = half
    return dict(sorted(result.items()))
