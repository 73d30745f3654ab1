"""Download of a checkpoint from the Hugging Face hub: the files that this project reads, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models.machine.errors import InputError, MissingInputError
from weight_cache.checkpoints.checkpoint import CLASSES, GENMO_DECODER, GENMO_ENCODER, GENMO_TRANSFORMER, Checkpoint

_FOLDERS = (*CLASSES, "tokenizer", "scheduler")


def wanted_files(files: Sequence[str], variant: str | None = None, genmo: bool = False) -> list[str]:
    """Return the files of a repository that make up a checkpoint.

    Args:
        files: paths within the repository.
        variant: variant of the weights; for a component without it the plain files are chosen.
        genmo: choose Genmo's transformer, decoder and (if it is there) encoder instead of Diffusers', with the folders
            that they need.

    Raises:
        ValueError: the repository holds no such checkpoint.
    """
    heads = {GENMO_TRANSFORMER, GENMO_DECODER} if genmo else {"model_index.json"}
    folders = [f for f in _FOLDERS if not (genmo and f in ("transformer", "vae"))]
    missing = sorted(heads - set(files)) + [f"{f}/" for f in folders if not any(n.startswith(f"{f}/") for n in files)]
    if missing:
        form = "Genmo's" if genmo else "Diffusers'"
        raise InputError(f"the repository holds no Mochi checkpoint in {form} layout: it lacks {', '.join(missing)}")
    chosen = heads | ({GENMO_ENCODER} & set(files) if genmo else set())
    for folder in folders:
        inside = [name for name in files if name.startswith(f"{folder}/") and name.count("/") == 1]
        weights = [name for name in inside if ".safetensors" in name]
        ours = [name for name in weights if variant and re.search(rf"\.{re.escape(variant)}[.-]", name)]
        plain = [name for name in weights if not re.search(r"\.(bf16|fp16|fp32|fp8)[.-]", name)]
        chosen.update(ours or plain)
        chosen.update(name for name in inside if name.endswith((".json", ".model", ".txt")) and name not in weights)
    return sorted(chosen)


def download(
    repository: str,
    *,
    variant: str | None = "bf16",
    genmo: bool = False,
    directory: str | Path | None = None,
    cache_dir: str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    hub: Any = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """Download a checkpoint and check that it is complete. Files that exist already are not downloaded again.

    Args:
        repository: Hugging Face id.
        variant: variant of the weights; for a component without it the plain files are downloaded.
        genmo: download Genmo's files instead of Diffusers' layout.
        directory: target directory; the hub's own cache by default, where `--model REPOSITORY` finds it.
        cache_dir: of the hub, where `directory` is None; its own by default.
        revision: branch, tag or commit.
        token: of the hub, for a repository that needs one; the one that is stored on this machine by default.
        hub: replacement of `huggingface_hub`, in tests.
        on_message: called before the download begins, with a line that says how large it is.

    Raises:
        FileNotFoundError: there is no such repository or no connection, or files are missing afterwards.
        ValueError: the repository holds no Mochi checkpoint.
        OSError: a file cannot be written.
    """
    if hub is None:
        import huggingface_hub as hub
    # HTTPError is the one of the hub's own transport, which differs by version.
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    failures = (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    # What is not given is not passed on, so that the hub's own defaults hold.
    at = {name: value for name, value in (("revision", revision), ("token", token)) if value is not None}
    kept = at if cache_dir is None else {**at, "cache_dir": str(cache_dir)}
    try:
        info = hub.HfApi().model_info(repository, files_metadata=True, **at)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        files = wanted_files(list(sizes), variant, genmo)
        if on_message is not None:
            on_message(f"{sum(sizes[name] for name in files) / 1e9:.1f} GB in {len(files)} files of {repository}")
        target = str(directory) if directory is not None else None
        path = Path(hub.snapshot_download(repository, allow_patterns=files, local_dir=target, **kept))
    except failures as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingInputError(
            f"{repository} cannot be fetched from the Hugging Face hub ({reason}): check the name and the connection"
        ) from error
    if genmo:
        checkpoint = Checkpoint.open(path / GENMO_TRANSFORMER, base=path)
    else:
        marked = any(variant and re.search(rf"\.{re.escape(variant)}[.-]", name) for name in files)
        checkpoint = Checkpoint(path, variant if marked else None)
    for component in checkpoint.components:
        component.check()
    return path
