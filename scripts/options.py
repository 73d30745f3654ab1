"""What several commands say of an option, and the request that options make."""

from collections.abc import Mapping
from typing import Any

from models.machine.errors import InputError
from models.mochi.presets import presets
from models.mochi.schedules import steps_of
from models.mochi.setup import Request, request_of

HELP = {
    "base": "For Genmo's and ComfyUI's forms: a Diffusers-layout checkpoint that holds the text encoder and tokenizer. "
    "[default: genmo/mochi-1-preview in the local cache]",
    "precision": "accurate, bf16, default, bf8 or fast, from the most exact to the fastest (docs/precision.md).",
    "lora": "A LoRA's .safetensors file, a folder of PEFT, or FILE:STRENGTH; may be given several times.",
    "first_frames": "Where the decoder drops surplus first frames: genmo (inside each upsampling, as Mochi's VAE was "
    "trained) or diffusers (at the end). The first ten frames differ. [default: by the checkpoint; genmo for Mochi 1 "
    "preview's VAE in every form, docs/weights.md]",
    "empty_prompt": "What an empty prompt means, the negative one too: zeros (no text takes part, as in Genmo's code) "
    "or encoded (T5 encodes the end token, as in Diffusers and ComfyUI). [default: by the checkpoint, docs/weights.md]",
    "plain": "Ops to avoid on this machine, such as norm,halo: single ops take their place; all, or none "
    "(docs/selftest.md). [default: the machine profile's]",
    "guidance_interval": "A:B, shares of the steps: guidance from A to B only, one branch elsewhere. [default: 0:1]",
    "threshold_noise": "Noise removed in the linear part of the schedule.",
    "linear_steps": "Steps of the linear part. [default: half of the steps]",
    "guidance_reuse": "K: in the run's middle, compute the unconditional branch in every K-th step. [default: 1]",
    "solver": "euler, or of second order: ab2 or unipc. [default: euler]",
    "reuse": "Reuse blocks of earlier steps: off, a threshold of change such as 0.1, steps:3,4,6, or steps:FILE of "
    "mochi-tt calibrate. [default: off]",
    "preset": f"{', '.join(presets())}: settings for what is not named (mochi-tt presets).",
    "sigmas": "Noise levels in place of steps and their schedule: n + 1 falling numbers that end with 0, such as "
    "1,0.8,0.4,0, or a file of them.",
    "cfg_schedule": "Guidance scales in place of one: n numbers, one for each step, or a file of them.",
    "steps_file": "A JSON object with sigma_schedule, cfg_schedule or both, as Genmo's code names them.",
    "preview": "N: every N steps write a strip of the latent frames as they will become, NAME.step-K.png. It costs two "
    "downloads of the latents, and changes no number of the video.",
    "num_videos": "N videos, of seeds s to s + N - 1, with one opening of the mesh; NAME.batch.json lists them.",
    "video": "A video to start from: its latents with noise in them, in place of noise alone (docs/usage.md). Mochi "
    "has no weights that are conditioned on videos or images.",
    "image": "An image to start from, as a video that stands still; results are quite static.",
    "strength": "With --video or --image, the share of the steps that are done, from 0 (the video as the VAE keeps it) "
    "to 1 (as without it). [default: 0.8]",
    "edit": "Edit the video by RF-inversion in place of a strength: start from the noise that it would be made of, and "
    "hold the first steps to it (docs/usage.md).",
    "eta": "With --edit, how strongly the first step is held to the video, from 0 to 1. [default: 0.9]",
    "eta_end": "With --edit, the share of the steps in which eta falls to 0. [default: 0.35]",
    "links": "Most Ethernet links to use between two chips. [default: the machine profile's, else all]",
    "topology": "line or ring: how the fabric is started and used. [default: the profile's, else by the system]",
    "profile": "Machine profile to read, or none. [default: on hardware the machine's own]",
    "cache_dir": "Where converted weights are kept. [default: MOCHI_TT_CACHE_DIR, else TT_DIT_CACHE_DIR, else the "
    "user's cache directory]",
}

_NAMES = {"cfg_scale": "guidance_scale", "lora": "loras"}


def request(options: Mapping[str, Any], **own: Any) -> Request:
    """Return the request that a command's options make, by their names; values of ``own`` win."""
    named = {_NAMES.get(name, name): value for name, value in options.items()}
    return request_of(named | {"loras": tuple(named.get("loras") or ())}, **own)


def with_steps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the schedules of `steps_file` in their places.

    Raises:
        InputError: the file is none, or a schedule is named twice.
    """
    file = options.get("steps_file")
    if file is None:
        return dict(options)
    found = steps_of(file)
    twice = [name for name in found if options.get(name) is not None]
    if twice:
        raise InputError(f"{twice[0]} is given, and the steps file {file} has it too: give one of the two")
    return {**options, **found}
