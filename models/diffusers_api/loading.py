"""What `from_pretrained` takes besides a checkpoint: Diffusers' keywords, and components given one by one."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.diffusers_api.measures import tell
from models.machine.checks import short
from models.machine.errors import InputError, MissingInputError
from models.machine.paths import is_dir, is_file
from models.mochi.sampling.schedule import check_scheduler
from weight_cache.checkpoints.checkpoint import CLASSES, Checkpoint
from weight_cache.checkpoints.component import Component
from weight_cache.checkpoints.download import download
from weight_cache.checkpoints.forms import open_decoder, open_text_encoder, open_transformer

# Precision for each type that `torch_dtype` may name, and what to say of it.
_PRECISIONS = {
    "float32": ("accurate", "HiFi4 products of bfloat16 weights, the most exact there is on the mesh"),
    "bfloat16": ("default", "precision='bf16' keeps every weight in bfloat16, at less speed"),
    "float16": ("default", "the mesh has no float16 weights; precision='bf16' keeps every weight in bfloat16"),
}
_PLACES = "the mesh and its layout say where weights lie"
# Keywords that change nothing here, and why.
NOT_NEEDED = {
    "device_map": _PLACES,
    "max_memory": _PLACES,
    "low_cpu_mem_usage": "weights are read one tensor at a time",
    "offload_folder": _PLACES,
    "offload_state_dict": _PLACES,
    "offload_buffers": _PLACES,
    "disable_mmap": "weights are read one tensor at a time",
    "quantization_config": "weights are stored as precision= says; precision='bf8' takes least memory",
    "add_prefix_space": "the tokenizer is the checkpoint's",
    "output_loading_info": "what does not fit is refused",
    "silence_dtype_warnings": "there are none",
    "hpu_migration": _PLACES,
}
# Keywords that would change results or run foreign code, and what to do.
REFUSED = {
    "custom_pipeline": "a pipeline from a foreign file is not run",
    "custom_revision": "a pipeline from a foreign file is not run",
    "trust_remote_code": "no foreign code is run: leave it out",
    "from_flax": "Flax weights are not read: convert them to safetensors",
    "use_onnx": "ONNX files are not read",
    "provider": "ONNX files are not read",
    "provider_options": "ONNX files are not read",
    "sess_options": "ONNX files are not read",
    "use_flashpack": "flashpack files are not read: use safetensors",
    "mirror": "set HF_ENDPOINT in the environment",
    "proxies": "set HTTPS_PROXY in the environment",
    "force_download": "download with mochi-tt download, or hf download --force-download",
    "resume_download": "downloads are always resumed",
    "load_connected_pipeline": "there is no connected pipeline",
    "tokenizer": "the checkpoint's own is used, because prompts must be cut as the text encoder was trained",
    "video_processor": "frames are made as output_type says",
}
_FALSY = (None, False)
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB = r"https://(?:huggingface\.co|hf\.co)"
_LINK = re.compile(_HUB + r"/([^/?#]+/[^/?#]+)/(?:blob|resolve)/([^/?#]+)/([^?#]+\.safetensors)(?:\?.*)?")
COMPONENTS = tuple(CLASSES)


def precision_of(torch_dtype: Any, say: Callable[[str, str], None]) -> str | None:
    """Return the precision that a type of Diffusers' stands for; None for none.

    Args:
        torch_dtype: `torch.bfloat16`, its name, or a mapping of components to such.
        say: called with a subject and a line about it.

    Raises:
        InputError: it is of another type.
    """
    if isinstance(torch_dtype, Mapping):
        torch_dtype = torch_dtype.get("transformer", torch_dtype.get("default"))
    if torch_dtype in (None, "auto"):
        return None
    name = str(torch_dtype).removeprefix("torch.")
    if name not in _PRECISIONS:
        raise InputError(f"torch_dtype {short(torch_dtype)} must be one of {', '.join(_PRECISIONS)}, or leave it out")
    precision, why = _PRECISIONS[name]
    say("torch_dtype", f"torch_dtype {name} stands for precision={precision!r} here: {why}")
    return precision


def check_keywords(keywords: Mapping[str, Any], say: Callable[[str, str], None]) -> None:
    """Say of each keyword that changes nothing why it does not.

    Raises:
        InputError: a keyword is refused, or unknown.
    """
    for name, value in keywords.items():
        if name in NOT_NEEDED:
            if value not in _FALSY:
                say(name, f"{name} is not needed: {NOT_NEEDED[name]}")
        elif name in REFUSED:
            if value not in _FALSY:
                raise InputError(f"{name} {short(value)} is not taken: {REFUSED[name]}")
        else:
            raise InputError(f"from_pretrained has no argument {name!r}; see docs/diffusers.md for those it has")


def open_checkpoint(
    model: Any,
    *,
    variant: str | None = None,
    base: str | None = None,
    cache_dir: Any = None,
    revision: str | None = None,
    token: Any = None,
    local_files_only: bool = False,
    say: Callable[[str, str], None],
    fetch: Callable[..., Path] = download,
) -> Checkpoint:
    """Open what `from_pretrained` names; a Hugging Face id that is not in the hub's cache is downloaded first.

    Args:
        model: see `models.mochi.setup.Request`.
        variant: of the weight files.
        base: see `Request`.
        cache_dir: of the Hugging Face hub; its own by default.
        revision: branch, tag or commit of the repository.
        token: of the hub.
        local_files_only: never download.
        say: called with a subject and a line for the user.
        fetch: downloads; replaced in tests.

    Raises:
        MissingInputError: the checkpoint is not there, or cannot be downloaded.
        InputError: it is of another model, or an argument does not go with it.
    """
    if isinstance(model, Checkpoint):
        if variant is not None or base is not None:
            raise InputError("variant and base belong to the checkpoint, which is already open: give them there")
        return model
    if not isinstance(model, str | Path) or not str(model).strip():
        raise InputError(f"model {short(model)} must be a directory, a file, a Hugging Face id, or tiny")
    is_id = not is_dir(model) and not is_file(model) and _ID.fullmatch(str(model)) is not None
    if not is_id:
        for name, value in (("cache_dir", cache_dir), ("revision", revision)):
            if value is not None:
                own = "; converted weights go to weights_cache_dir" if name == "cache_dir" else ""
                say(name, f"{name} is the Hugging Face hub's and has no effect, {model} is on this machine{own}")
        return Checkpoint.open(model, variant, base)
    hub = {"cache_dir": cache_dir, "revision": revision, "token": token}
    try:
        checkpoint = Checkpoint.open(_cached(str(model), **hub), variant, base)
        for component in checkpoint.components:
            component.check()
    except MissingInputError as error:
        if local_files_only:
            raise MissingInputError(f"{error} (local_files_only is set, so nothing is downloaded)") from error
        path = fetch(str(model), variant=variant, on_message=lambda line: say("download", f"downloading {line}"), **hub)
        checkpoint = Checkpoint.open(path, variant, base)
    checkpoint.source = str(model)
    return checkpoint


def _cached(model: str, **hub: Any) -> Path:
    """Return the folder of a Hugging Face id in the hub's cache.

    Raises:
        MissingInputError: it is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True, **hub))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise MissingInputError(
            f"{model} is neither a directory nor in the Hugging Face cache: give a directory, or download it with "
            f"`mochi-tt download {model}`"
        ) from error


def linked(name: Any, *, local_files_only: bool = False) -> Any:
    """Return the file in the hub's cache that a link to the Hugging Face hub names; anything else as it is.

    Raises:
        MissingInputError: it is not there, and cannot be downloaded.
    """
    found = _LINK.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        return name
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, revision, path = found.groups()
    try:
        return huggingface_hub.hf_hub_download(repository, path, revision=revision, local_files_only=local_files_only)
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise MissingInputError(
            f"{path} of {repository} is not in the Hugging Face cache and cannot be downloaded "
            f"({' '.join(str(error).split())[:120]}): check the link and the connection"
        ) from error


class Named:
    """A component of a checkpoint by its name: what Diffusers' model classes are to a script that only passes them on.

    It holds no weights: the pipeline reads them when it is opened.
    """

    component = ""

    def __init__(self, source: Checkpoint | Path, subfolder: str | None) -> None:
        """Refer to a component of a checkpoint, or to a file or folder of the component alone."""
        self.source, self.subfolder = source, subfolder

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        subfolder: str | None = None,
        torch_dtype: Any = None,
        dtype: Any = None,
        variant: str | None = None,
        cache_dir: Any = None,
        revision: str | None = None,
        token: Any = None,
        local_files_only: bool = False,
        **keywords: Any,
    ) -> Named:
        """Refer to the component of a checkpoint, or to a folder or .safetensors file of it alone.

        `torch_dtype` is the pipeline's business, and other keywords are as in `MochiPipeline.from_pretrained`.

        Raises:
            MissingInputError: there is no such checkpoint.
            InputError: an argument is refused, or `subfolder` is another component's.
        """
        check_keywords(keywords, _warn)
        for value in (torch_dtype, dtype):
            precision_of(value, _silent)
        if subfolder is not None and subfolder != cls.component:
            raise InputError(f"subfolder {short(subfolder)} is not {cls.component}, where a {cls.__name__} lies")
        name = linked(pretrained_model_name_or_path, local_files_only=local_files_only)
        if is_file(Path(str(name))) or is_file(Path(str(name)) / "config.json"):
            return cls(Path(str(name)), None)
        hub = {"cache_dir": cache_dir, "revision": revision, "token": token, "local_files_only": local_files_only}
        return cls(open_checkpoint(name, variant=variant, say=_warn, **hub), cls.component)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: Any, **keywords: Any) -> Named:
        """Refer to a .safetensors file in Genmo's or ComfyUI's names, or to a link to one on the Hugging Face hub.

        Raises:
            MissingInputError: there is no such file.
            InputError: an argument is refused.
        """
        for name in ("config", "subfolder", "original_config", "torch_dtype", "dtype"):
            keywords.pop(name, None)
        check_keywords(keywords, _warn)
        local = keywords.pop("local_files_only", False)
        name = str(linked(pretrained_model_link_or_path_or_dict, local_files_only=local))
        if not is_file(Path(name)):
            raise MissingInputError(f"no file at {short(name)}: download it, and give its path")
        return cls(Path(name), None)

    def open(self) -> Any:
        """Return the component.

        Raises:
            InputError: it is not one of this kind.
        """
        if isinstance(self.source, Checkpoint):
            return getattr(self.source, self.component)
        if is_dir(self.source):
            component = Component(self.source)
            component.name = self.component
            component.require_class(CLASSES[self.component])
            return component
        if self.component == "transformer":
            return open_transformer(self.source)
        if self.component == "vae":
            return open_decoder(self.source)
        return open_text_encoder(self.source)


class MochiTransformer3DModel(Named):
    """The transformer of a checkpoint, to be given as `MochiPipeline.from_pretrained(..., transformer=)`."""

    component = "transformer"


class AutoencoderKLMochi(Named):
    """The VAE of a checkpoint, to be given as `MochiPipeline.from_pretrained(..., vae=)`."""

    component = "vae"


class T5EncoderModel(Named):
    """The text encoder of a checkpoint, to be given as `MochiPipeline.from_pretrained(..., text_encoder=)`."""

    component = "text_encoder"


def with_components(
    checkpoint: Checkpoint, given: Mapping[str, Any], say: Callable[[str, str], None]
) -> tuple[Checkpoint, tempfile.TemporaryDirectory[str] | None]:
    """Return a checkpoint with other components, and the folder of files that were written for them.

    Args:
        checkpoint: whose components are replaced.
        given: by the names of components: what this module's classes refer to, or modules of Diffusers and
            `transformers`, whose weights are written to a temporary folder.
        say: called with a subject and a line for the user.

    Raises:
        InputError: a component is quantised, has LoRAs, or is of another class.
    """
    made, folder = copy.copy(checkpoint), None
    for name, value in given.items():
        if isinstance(value, Named):
            if value.component != name:
                raise InputError(f"{name} is a {type(value).__name__}: give it as {value.component}=")
            setattr(made, name, value.open())
            continue
        _check_module(name, value)
        folder = folder or tempfile.TemporaryDirectory(prefix="mochi-tt-components-")
        say(
            name,
            f"the weights of {name} are written to {folder.name} and read from there: from mochi_tt import "
            f"{CLASSES[name]} refers to the checkpoint without that",
        )
        value.save_pretrained(Path(folder.name) / name)
        component = Component(Path(folder.name) / name)
        component.require_class(CLASSES[name])
        setattr(made, name, component)
    return made, folder


def check_given_scheduler(scheduler: Any) -> None:
    """Check that a scheduler which a caller gives is the one that Mochi is sampled with.

    Raises:
        InputError: it is another.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InputError(f"scheduler {short(type(scheduler).__name__)} must be a FlowMatchEulerDiscreteScheduler")
    check_scheduler({"_class_name": type(scheduler).__name__, **config})


def _check_module(name: str, value: Any) -> None:
    """Refuse what is no plain module of the component's class.

    Raises:
        InputError: it is not.
    """
    kind = type(value).__name__
    if kind != CLASSES[name] or not hasattr(value, "save_pretrained"):
        raise InputError(f"{name} is a {kind}, but must be a {CLASSES[name]}, or None to leave it out")
    if getattr(value, "hf_quantizer", None) is not None or getattr(value, "is_quantized", False):
        raise InputError(
            f"{name} is quantised, which is a form for GPUs: give the plain weights, and precision='bf8' to take less "
            "memory"
        )
    if getattr(value, "peft_config", None):
        raise InputError(f"{name} has LoRAs in it: give it without, and load them with pipe.load_lora_weights")
    meta = [key for key, tensor in value.state_dict().items() if tensor.device.type == "meta"]
    if meta:
        raise InputError(f"{name} has no weights in memory ({meta[0]} is offloaded): load it without device_map")


def _warn(subject: str, line: str) -> None:
    tell(None, line)


def _silent(subject: str, line: str) -> None:
    pass
