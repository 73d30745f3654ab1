"""Fetching a checkpoint from the Hugging Face hub: the files that this project reads, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weight_cache.checkpoints.checkpoint import CLASSES, GENMO_DECODER, GENMO_TRANSFORMER, Checkpoint

_FOLDERS = (*CLASSES, "tokenizer", "scheduler")


def wanted_files(files: Sequence[str], variant: str | None = None, genmo: bool = False) -> list[str]:
    """Those of a repository's files that make up a checkpoint.

    Args:
        files: paths within the repository.
        variant: of the weights; a component without it is taken plain.
        genmo: Genmo's transformer and decoder instead of Diffusers', with the folders they need.

    Raises:
        ValueError: the repository holds no such checkpoint.
    """
    heads = {GENMO_TRANSFORMER, GENMO_DECODER} if genmo else {"model_index.json"}
    folders = [f for f in _FOLDERS if not (genmo and f in ("transformer", "vae"))]
    missing = sorted(heads - set(files)) + [f"{f}/" for f in folders if not any(n.startswith(f"{f}/") for n in files)]
    if missing:
        form = "Genmo's" if genmo else "Diffusers'"
        raise ValueError(f"the repository holds no Mochi checkpoint in {form} layout: it lacks {', '.join(missing)}")
    chosen = set(heads)
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
    hub: Any = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a checkpoint and check that it is whole; what is there already is not fetched again.

    Args:
        repository: Hugging Face id.
        variant: of the weights; a component without it is taken plain.
        genmo: Genmo's files instead of Diffusers' layout.
        directory: where to; the hub's own cache by default, where `--model REPOSITORY` finds it.
        hub: what stands for `huggingface_hub`, in tests.
        say: called with a line before the transfer begins.

    Raises:
        FileNotFoundError: no such repository, no connection, or files are missing afterwards.
        ValueError: the repository holds no Mochi checkpoint.
        OSError: it cannot be written.
    """
    if hub is None:
        import huggingface_hub as hub
    # HTTPError is that of the hub's own transport, whichever its version uses.
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    failures = (HTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    try:
        files = wanted_files(hub.HfApi().list_repo_files(repository), variant, genmo)
        if say is not None:
            say(f"{len(files)} files of {repository}")
        target = str(directory) if directory is not None else None
        path = Path(hub.snapshot_download(repository, allow_patterns=files, local_dir=target))
    except failures as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
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
