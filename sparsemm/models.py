"""Loads checkpoints, identifies their exact contents, and describes them for params.yaml."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sparsemm import fetch
from sparsemm.errors import LayoutError, ModelError, SparseMMError
from sparsemm.files import plain_name, sha256_file
from sparsemm.layouts import family_of
from sparsemm.params import ModelParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NOT_CONTENT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "_attn_implementation_autoset")
NAMED = 3  # most weights that an error message names; it only counts the others
LONGEST = 600  # most characters that an error message quotes from transformers


def content_revision(folder: str | Path) -> str:
    """Returns 16 hex digits, a hash of names and bytes of a local checkpoint's files without card and hidden files."""
    files = sorted(p for p in Path(folder).iterdir() if p.is_file() and p.name[0] != "." and p.name != "card.json")
    lines = "".join(f"{plain_name(path.name)} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def fingerprint(config: PretrainedConfig) -> str:
    """Returns the hex SHA-256 of a config's canonical JSON, without keys that do not change the model's mathematics.

    Quantisation by bitsandbytes at load time is left out: a score table belongs to the checkpoint, and its own header
    names the quantisation.
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


def mixed_layers(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the header keys of a score table for a model with sliding-window or linear-attention layers.

    Raises CacheError if it has layers of another kind, or no layer with full attention.
    """
    from sparsemm.cache.served import layers_of

    text = config.get_text_config()
    layers = layers_of(text, str(config.model_type))[0]
    sliding = [i for i, layer in enumerate(layers) if getattr(layer, "is_sliding", False)]
    linear = [i for i, layer in enumerate(layers) if not hasattr(layer, "is_sliding")]
    header = {"sliding_layers": sliding, "sliding_window": getattr(text, "sliding_window", None)} if sliding else {}
    return header | ({"linear_layers": linear} if linear else {})


def load_model(entry: ModelParams, device: str | None = None) -> tuple[Any, Any]:
    """Loads (model in eval mode, processor) of an entry, onto `device`, or else onto CUDA if there is a device.

    A local folder is read offline, and its contents must match `revision`. With `device_map` or `load_in`, transformers
    places the weights, unless `device` names one device for all.

    Raises:
        FetchError: if a hub checkpoint cannot be fetched.
        LayoutError: if no layout supports the model.
        ModelError: if the folder holds another revision, the model is of another family or cannot be loaded, a package
            that `device_map` or `load_in` needs is missing, or no device has room for the first weights.
    """
    import torch

    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    local = Path(entry.checkpoint).is_dir()
    if local:
        disable_progress_bar()  # it would vanish before anyone can read it
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if local:
        revision = content_revision(entry.checkpoint)
        if entry.revision is not None and revision != entry.revision:
            raise ModelError(
                f"the folder's contents are revision {revision}, params.yaml names {entry.revision}",
                where=entry.checkpoint,
                hint="run `sparsemm models add` on it again if the change is intended",
            )
    folder = entry.checkpoint if local else str(fetch.fetch_checkpoint(entry.checkpoint, entry.revision))
    family = _family(_parsed(Path(folder) / "config.json", entry.checkpoint), entry.checkpoint)
    if family != entry.family:
        what = f"config.json is of family {family}, params.yaml says {entry.family}"
        raise ModelError(what, where=entry.checkpoint, hint="run `sparsemm models add` on it again")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    placed = _placing(entry, None if entry.device_map and device is None else place)
    hint = "is it a complete checkpoint?" if local else "check the path or hub id and the revision"
    with transformers_errors(entry.checkpoint, hint):
        processor = AutoProcessor.from_pretrained(folder, **options)
        processor.tokenizer.padding_side = "left"
        options |= placed | {"dtype": getattr(torch, entry.dtype)}
        model = whole_model(AutoModelForImageTextToText, folder, entry.checkpoint, **options)
        if model.device.type == "meta":
            hint = "free memory of the first GPU, or set load_in: 4bit"
            raise ModelError("no device has room for its first layers", where=entry.checkpoint, hint=hint)
        model = model if placed else model.to(place)
    if entry.load_in == "4bit":
        for module in model.modules():
            # Else a CPU with bf16 instructions computes in bf16 for any dtype, and refuses widths such as 96.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return model.eval(), processor


@contextmanager
def transformers_errors(where: str, hint: str) -> Iterator[None]:
    """Turns any error of transformers while it reads or builds a model into a `ModelError`.

    Args:
        where: the checkpoint.
        hint: what to do about a missing file.

    Raises:
        ModelError: in place of any exception that is not a `SparseMMError`.
    """
    import torch

    try:
        yield
    except SparseMMError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        if isinstance(error, ImportError):
            hint = "install the package, or remove the keys that need it from config.json"
        elif isinstance(error, torch.OutOfMemoryError | MemoryError):
            hint = "free memory, or set device_map or load_in of its entry in params.yaml"
        elif not isinstance(error, OSError):  # an OSError names its file
            text, hint = f"{type(error).__name__}: {text}", "check config.json and the other files of the checkpoint"
        raise ModelError(f"cannot be loaded: {text}", where=where, hint=hint) from error


def whole_model(kind: Any, folder: str | Path | None, where: str, **options: Any) -> Any:
    """Loads a model all of whose weights come from the checkpoint.

    Transformers would initialise missing weights at random. Tied weights and buffers that it does not save do not count
    as missing.

    Args:
        kind: a model class of transformers, or an auto class.
        folder: folder of the checkpoint; None if `options` has its weights.
        where: name of the checkpoint in error messages.
        options: arguments of `from_pretrained`.

    Raises:
        ModelError: if weights are missing, or their shapes differ from those of config.json.
    """
    report = logging.getLogger("transformers.modeling_utils")
    report.addFilter(_is_no_report)  # the error below says the same
    try:
        # No pickles: pytorch_model.bin is never read.
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **options
        )
    finally:
        report.removeFilter(_is_no_report)
    if info["mismatched_keys"]:
        name, stored, expected = min(info["mismatched_keys"])
        what = f"{name} has shape {tuple(stored)}, by config.json it is {tuple(expected)}"
        more = len(info["mismatched_keys"]) - 1
        raise ModelError(
            what + (f", and {more} more have wrong shapes" if more else ""),
            where=where,
            hint="config.json and the weights belong to different models; take both from one checkpoint",
        )
    if info["missing_keys"]:
        raise _incomplete(set(info["missing_keys"]), set(info["unexpected_keys"]), where)
    return model


def check_weights(folder: str | Path) -> None:
    """Compares a local checkpoint's weights with its config.json; reads only their names and shapes.

    Weights that are stored quantised are not checked, since their names depend on the quantisation method. Raises
    ModelError if weights are missing, their shapes differ from those of config.json, or no model can be built.
    """
    import torch
    from safetensors import safe_open

    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = str(folder)
    shapes: dict[str, list[int]] = {}
    with transformers_errors(where, "is it a complete checkpoint?"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if getattr(config, "quantization_config", None) is not None:
            return
        for path in weight_files(Path(folder)):
            with safe_open(path, framework="pt") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}
        # One number, expanded to the shape of a tensor, takes no memory.
        number = torch.zeros((), dtype=torch.float32, device="cpu")
        state = {name: number.expand(shape) for name, shape in shapes.items()}
        kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        # No weights are initialised here. By the module's name transformers recognises its own class.
        same = {"__module__": kind.__module__, "initialize_weights": lambda model: None}
        empty = type(kind.__name__, (kind,), same)
        whole_model(empty, None, where, config=config, state_dict=state, dtype=torch.float32)


def weight_files(folder: Path) -> list[Path]:
    """Lists the safetensors files of a checkpoint folder that transformers reads: those of its index, if there is one.

    Raises OSError, ValueError, LookupError, TypeError, AttributeError if the index cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _is_no_report(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in ("LOAD REPORT", "checkpoint seem corrupted"))


def _incomplete(missing: set[str], unexpected: set[str], where: str) -> ModelError:
    """Returns the error about missing weights, which names a prefix under which the files do have them."""
    what = f"{len(missing)} of its weights are missing: {_some(missing)}"
    prefixes: dict[str, set[str]] = {}
    for name in unexpected:
        for at in re.finditer(r"\.", name):
            if not missing.isdisjoint((name[at.end() :], f"model.{name[at.end() :]}")):
                prefixes.setdefault(name[: at.end()], set()).add(name)
                break
    if not prefixes:
        return ModelError(what, where=where, hint="save or fetch the checkpoint again, whole")
    prefix, names = max(prefixes.items(), key=lambda item: (len(item[1]), item[0]))
    what += f"; it has {len(names)} whose names begin with {prefix!r} instead: {_some(names)}"
    hint = "merge the adapter with peft's merge_and_unload" if "base_model." in prefix else "take the model out of it"
    return ModelError(what, where=where, hint=f"these are the names of a wrapper: {hint} before saving")


def _some(names: set[str]) -> str:
    first = sorted(names)[:NAMED]
    return ", ".join(first) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _placing(entry: ModelParams, place: str | None) -> dict[str, Any]:
    """Returns the options of `from_pretrained` if it places or quantises the weights itself, else none.

    Args:
        entry: the model's entry in params.yaml.
        place: device for all weights; None leaves that to `entry.device_map`.
    """
    import torch
    from transformers import BitsAndBytesConfig

    needed = {"accelerate": entry.device_map or entry.load_in, "bitsandbytes": entry.load_in}
    for package, option in needed.items():
        if option and importlib.util.find_spec(package) is None:
            what = f"{'load_in' if entry.load_in else 'device_map'} needs the package {package}"
            raise ModelError(
                what, where=entry.checkpoint, hint="install the gpu extra: `pip install '.[gpu]'` in a clone"
            )
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
        # Else it logs a line for every matrix product that is not in fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return placed


def read_config(checkpoint: str, revision: str | None = None) -> dict[str, Any]:
    """Reads config.json of a local folder or a hub id.

    Raises ModelError if there is none, it is not JSON, or the hub cannot be reached.
    """
    return _parsed(_config_path(checkpoint, revision), checkpoint)


def _parsed(path: Path, checkpoint: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "a checkpoint is a folder with a config.json"
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
    """Returns the params entry of a checkpoint; its revision is the hub's commit, or a hash of the folder's contents.

    Raises:
        LayoutError: if no layout supports the model.
        ModelError: if config.json cannot be read or has an unsupported dtype, or a local folder does not hold
            `revision`.
    """
    try:
        checkpoint.encode()
    except UnicodeEncodeError as error:
        what, where = "params.yaml cannot hold a name that is not UTF-8", plain_name(checkpoint)
        raise ModelError(what, where=where, hint="rename the folder") from error
    path = _config_path(checkpoint, revision)
    config = _parsed(path, checkpoint)
    family = _family(config, checkpoint)
    if Path(checkpoint).is_dir():
        contents = content_revision(checkpoint)
        if revision not in (None, contents):
            raise ModelError(f"the folder's contents are revision {contents}, not {revision}", where=checkpoint)
        revision = contents
    elif re.fullmatch(r"[0-9a-f]{40}", path.parent.name):
        revision = path.parent.name  # huggingface_hub names the folder after the commit of a branch or tag
    text = config.get("text_config") or {}
    dtype = dtype or config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32"
    dtypes = get_args(ModelParams.model_fields["dtype"].annotation)
    if dtype not in dtypes:
        hint = f"choose one of {', '.join(dtypes)} with --dtype"
        raise ModelError(f"dtype {dtype!r} is not supported", where=checkpoint, hint=hint)
    values = {"checkpoint": checkpoint, "revision": revision, "family": family, "dtype": dtype, "note": note}
    return ModelParams.model_validate_json(json.dumps(values))


def default_key(checkpoint: str) -> str:
    """Derives a model key from the last part of a checkpoint's path: Qwen/Qwen2.5-VL-7B -> qwen2-5-vl-7b."""
    name = Path(checkpoint).name or Path(checkpoint).resolve().name  # for "."
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")


def imported_header(entry: ModelParams) -> dict[str, Any]:
    """Returns the header of an imported score table: what config.json says about the model.

    Raises ModelError if its config cannot be read.
    """
    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import AutoConfig

    with transformers_errors(entry.checkpoint, "check its config.json"):
        config = AutoConfig.from_pretrained(entry.checkpoint, revision=entry.revision, trust_remote_code=False)
    text = config.get_text_config()
    return {
        "model": entry.checkpoint,
        "revision": entry.revision,
        "fingerprint": fingerprint(config),
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "num_kv_heads": text.num_key_value_heads,
        **mixed_layers(config),
    }
