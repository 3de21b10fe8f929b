"""Load a checkpoint, name its exact contents, and describe it for params.yaml."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safetensors import SafetensorError

from sparsemm import fetch
from sparsemm.errors import LayoutError, ModelError
from sparsemm.files import sha256_file
from sparsemm.layouts import family_of
from sparsemm.params import ModelParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NOT_CONTENT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "_attn_implementation_autoset")


def content_revision(folder: str | Path) -> str:
    """16 hex digits over names and bytes of a local checkpoint's files (its card and hidden files left out)."""
    files = sorted(p for p in Path(folder).iterdir() if p.is_file() and p.name[0] != "." and p.name != "card.json")
    lines = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def fingerprint(config: PretrainedConfig) -> str:
    """Hex SHA-256 of a config's canonical JSON, without what does not change the model's mathematics.

    Quantisation by bitsandbytes at load time is left out: the table belongs to the checkpoint, and names it itself.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            # An enum after loading, whose str() is not its value; it equals its value.
            method = dict(value.get("quantization_config") or {}).get("quant_method")
            loaded = ("quantization_config",) if method == "bitsandbytes" else ()
            return {str(k): clean(v) for k, v in value.items() if k not in (*NOT_CONTENT, *loaded)}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return value

    text = json.dumps(clean(config.to_dict()), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sliding_layers(config: PretrainedConfig) -> dict[str, Any]:
    """What a score table's header says of a model that has sliding-window layers beside full ones, else nothing.

    Raises:
        CacheError: if it has layers of yet another kind, or no layer with full attention.
    """
    from sparsemm.cache.served import layers_of

    text = config.get_text_config()
    full = layers_of(text, str(config.model_type))[1]
    sliding = [i for i in range(text.num_hidden_layers) if i not in full]
    return {"sliding_layers": sliding, "sliding_window": getattr(text, "sliding_window", None)} if sliding else {}


def load_model(entry: ModelParams, device: str | None = None) -> tuple[Any, Any]:
    """Load (model in eval mode, processor) of an entry; CUDA where there is one unless `device` says otherwise.

    A local folder is read offline, and its contents must be what `revision` names. With `device_map` or `load_in` the
    weights go where transformers puts them, unless `device` names one place for all.

    Raises:
        FetchError: if a hub checkpoint cannot be fetched.
        LayoutError: if no layout supports the model.
        ModelError: if the folder does not hold the revision, is of another family or cannot be loaded, a package that
            `device_map` or `load_in` needs is missing, or no device has room for the first of the weights.
    """
    import torch

    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    local = Path(entry.checkpoint).is_dir()
    if local:
        disable_progress_bar()  # a bar that is over before it can be read
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if local:
        found = content_revision(entry.checkpoint)
        if entry.revision is not None and found != entry.revision:
            raise ModelError(
                f"the folder's contents are revision {found}, params.yaml names {entry.revision}",
                where=entry.checkpoint,
                hint="run `sparsemm models add` on it again if the change is wanted",
            )
    folder = entry.checkpoint if local else str(fetch.checkpoint(entry.checkpoint, entry.revision))
    family = _family(_parsed(Path(folder) / "config.json", entry.checkpoint), entry.checkpoint)
    if family != entry.family:
        what = f"config.json is of family {family}, params.yaml says {entry.family}"
        raise ModelError(what, where=entry.checkpoint, hint="run `sparsemm models add` on it again")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    placed = _placing(entry, None if entry.device_map and device is None else place)
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        dtype = getattr(torch, entry.dtype)
        # No pickles: what transformers would make of pytorch_model.bin is not looked for.
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, **options, **placed
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        hint = "check the path or hub id and the revision" if not local else "is it a complete checkpoint?"
        raise ModelError(f"cannot be loaded: {error}", where=entry.checkpoint, hint=hint) from error
    if model.device.type == "meta":
        hint = "free the memory of the first GPU, or load it in 4bit"
        raise ModelError("no device has room for its first part", where=entry.checkpoint, hint=hint)
    processor.tokenizer.padding_side = "left"
    if entry.load_in == "4bit":
        for module in model.modules():
            # Else a CPU with bf16 instructions computes in bf16 whatever the dtype, and refuses widths such as 96.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return (model if placed else model.to(place)).eval(), processor


def _placing(entry: ModelParams, place: str | None) -> dict[str, Any]:
    """What `from_pretrained` is told where it places or quantises the weights itself; else nothing.

    Args:
        place: device for all weights, or None: `entry.device_map` decides.
    """
    import torch
    from transformers import BitsAndBytesConfig

    needed = {"accelerate": entry.device_map or entry.load_in, "bitsandbytes": entry.load_in}
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            what = f"{'load_in' if entry.load_in else 'device_map'} needs the package {package}"
            raise ModelError(what, where=entry.checkpoint, hint="pip install 'sparsemm[gpu]'")
    if not entry.device_map and not entry.load_in:
        return {}
    placed: dict[str, Any] = {"device_map": {"": place} if place else entry.device_map}
    if entry.load_in == "4bit":
        compute = getattr(torch, entry.dtype)
        placed["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    elif entry.load_in == "8bit":
        placed["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        # Else a line for every product of what is not fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return placed


def read_config(checkpoint: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a local folder or a hub id, as a dict.

    Raises:
        ModelError: if there is none, it is not JSON, or the hub cannot be reached.
    """
    return _parsed(_config_path(checkpoint, revision), checkpoint)


def _parsed(path: Path, checkpoint: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "a checkpoint is a folder that holds it"
        raise ModelError(f"config.json cannot be read: {error.strerror}", where=checkpoint, hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"config.json cannot be read: {error}", where=checkpoint) from error
    if not isinstance(config, dict):
        raise ModelError("config.json is not an object", where=checkpoint)
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part) or {}, dict):
            raise ModelError(f"{part} of config.json is not an object", where=checkpoint)
    return config


def _family(config: dict[str, Any], checkpoint: str) -> str:
    try:
        return family_of(config)
    except LayoutError as error:
        raise LayoutError(error.what, where=checkpoint, hint=error.hint) from error


def _config_path(checkpoint: str, revision: str | None) -> Path:
    if Path(checkpoint).is_dir():
        return Path(checkpoint) / "config.json"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(checkpoint, "config.json", revision=revision))
    except HFValidationError as error:
        hint = "hub ids are owner/name"
        raise ModelError("neither a local folder nor a hub id", where=checkpoint, hint=hint) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"neither a local folder nor a reachable hub checkpoint: {error}",
            where=checkpoint,
            hint="check the spelling and the network (HF_ENDPOINT, HF_TOKEN)",
        ) from error


def new_entry(checkpoint: str, revision: str | None = None, dtype: str | None = None, note: str = "") -> ModelParams:
    """The params entry of a checkpoint: family from config.json, revision the hub's commit or the folder's contents.

    Raises:
        LayoutError: if no layout supports the model.
        ModelError: if config.json cannot be read or states a dtype that is not served, or `revision` is not what a
            local folder holds.
    """
    path = _config_path(checkpoint, revision)
    config = _parsed(path, checkpoint)
    family = _family(config, checkpoint)
    if Path(checkpoint).is_dir():
        found = content_revision(checkpoint)
        if revision not in (None, found):
            raise ModelError(f"the folder's contents are revision {found}, not {revision}", where=checkpoint)
        revision = found
    elif re.fullmatch(r"[0-9a-f]{40}", path.parent.name):
        revision = path.parent.name  # huggingface_hub keeps files under the commit that a branch or tag stands for
    text = config.get("text_config") or {}
    stated = dtype or config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32"
    served = get_args(ModelParams.model_fields["dtype"].annotation)
    if stated not in served:
        hint = f"choose one of {', '.join(served)} with --dtype"
        raise ModelError(f"dtype {stated!r} is not served", where=checkpoint, hint=hint)
    values = {"checkpoint": checkpoint, "revision": revision, "family": family, "dtype": stated, "note": note}
    return ModelParams.model_validate_json(json.dumps(values))


def default_key(checkpoint: str) -> str:
    """A model key from a checkpoint's last path part: Qwen/Qwen2.5-VL-7B -> qwen2-5-vl-7b."""
    name = Path(checkpoint).name or Path(checkpoint).resolve().name  # the folder that . is
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")


def imported_header(entry: ModelParams) -> dict[str, Any]:
    """Header of a score table that comes from elsewhere: what can be known of the model without loading it.

    Raises:
        ModelError: if its config cannot be read.
    """
    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(entry.checkpoint, revision=entry.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"config cannot be read: {error}", where=entry.checkpoint) from error
    text = config.get_text_config()
    return {
        "model": entry.checkpoint,
        "revision": entry.revision,
        "fingerprint": fingerprint(config),
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads,
        **sliding_layers(config),
    }
