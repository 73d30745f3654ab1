"""What `pipe.vae`, `pipe.transformer`, `pipe.text_encoder` and `pipe.scheduler` are to a script written for Diffusers.

They have the configurations and the few methods that scripts use. The models themselves are on the mesh; anything else
that is asked of them is looked up there, so that code which knows ours goes on working.

Shapes: B videos, C latent channels, T latent frames, F frames, H and W rows and columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models.machine.errors import InputError
from models.mochi.vae.frames import normalise

# The index's own pair of library and class of each component.
CLASSES = {
    "vae": ("diffusers", "AutoencoderKLMochi"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "MochiTransformer3DModel"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
# Settings of Diffusers that a `config.json` may leave out (`AutoencoderKLMochi.__init__`, `MochiTransformer3DModel`).
_VAE = {
    "in_channels": 15,
    "out_channels": 3,
    "latent_channels": 12,
    "scaling_factor": 1.0,
    "latents_mean": None,
    "latents_std": None,
}


class Config(dict):
    """A configuration, read by key or by attribute, as Diffusers' `FrozenDict`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the configuration has no {name!r}; it has {', '.join(map(str, self))}") from error

    def _frozen(self, *_: Any, **__: Any) -> None:
        raise InputError("a configuration of a loaded model cannot be changed: change the checkpoint's config.json")

    __setitem__ = __delitem__ = __setattr__ = _frozen  # type: ignore[assignment]
    pop = popitem = update = setdefault = clear = _frozen  # type: ignore[assignment]


@dataclass
class DecoderOutput:
    """What `pipe.vae.decode` returns: `sample`, [B, 3, F, H, W] from -1 to 1."""

    sample: torch.Tensor

    def __getitem__(self, key: str | int) -> torch.Tensor:
        return self.sample if key == "sample" else (self.sample,)[key]  # type: ignore[index]


@dataclass
class LatentDistribution:
    """The normal distribution of latents, with the names of Diffusers' `DiagonalGaussianDistribution`."""

    mean: torch.Tensor
    logvar: torch.Tensor

    def __post_init__(self) -> None:
        self.logvar = self.logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return a sample, whose noise is drawn on the CPU."""
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)

    def mode(self) -> torch.Tensor:
        """Return the mean."""
        return self.mean


@dataclass
class EncoderOutput:
    """What `pipe.vae.encode` returns."""

    latent_dist: LatentDistribution

    def __getitem__(self, key: str | int) -> LatentDistribution:
        return self.latent_dist if key == "latent_dist" else (self.latent_dist,)[key]  # type: ignore[index]


class OnMesh:
    """One of the models, with its configuration.

    `dtype` is that of the tensors which it takes and gives, and `device` where they are. On the mesh there are others
    (`models.mochi.precision`).
    """

    dtype = torch.float32
    device = torch.device("cpu")
    training = False

    def __init__(self, name: str, model: Any, config: Mapping[str, Any], tell: Callable[[str, str], None]) -> None:
        """Wrap the model `name`; `tell` is called with a subject and a line about it."""
        self._name, self._model, self._tell = name, model, tell
        self.config = Config(config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        for table, answer in ((_NOT_NEEDED, self._accept), (_REFUSED, self._refuse)):
            if name in table:
                return functools.partial(answer, name)
        try:
            return getattr(self._model, name)
        except AttributeError:
            raise AttributeError(
                f"pipe.{self._name} is on the mesh and has no {name!r}; it has config, dtype and device, and the "
                "pipeline's encode_prompt, denoise and decode run it"
            ) from None

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse a forward of one's own."""
        stage = {"transformer": "pipe.denoise", "text_encoder": "pipe.encode_prompt"}.get(self._name, "pipe.decode")
        raise InputError(f"pipe.{self._name} cannot be called by itself, because its tensors are on the mesh: {stage}")

    def _accept(self, method: str, *_: Any, **__: Any) -> OnMesh:
        """Say why a measure is not needed."""
        if _NOT_NEEDED[method]:
            self._tell(method, f"pipe.{self._name}.{method} is not needed: {_NOT_NEEDED[method]}")
        return self

    def _refuse(self, method: str, *arguments: Any, **named: Any) -> Any:
        if method in ("requires_grad_", "train") and [*arguments, *named.values()] == [False]:
            return self  # So it is.
        raise InputError(f"pipe.{self._name}.{method} is not taken: {_REFUSED[method]}")


# Methods that change nothing here, and why; "" where nobody would ask.
_NOT_NEEDED = {
    "to": "the model stays on the mesh, in the pipeline's precision",
    "eval": "",
    "enable_tiling": "whole frames lie cut over the chips, without seams",
    "disable_tiling": "",
    "enable_slicing": "videos are decoded one by one",
    "disable_slicing": "",
    "compile": "programs are compiled for the chips, and a step is captured once",
    "compile_repeated_blocks": "programs are compiled for the chips, and a step is captured once",
    "disable_cache": "",
}
_TRAINING = "the model has no gradients; train with Diffusers or Genmo's code"
_ATTENTION = "attention is the mesh's own; precision= chooses its arithmetic"
# Methods that would change results, and what to do.
_REFUSED = {
    "enable_cache": "give reuse= or guidance_reuse= to the call",
    "set_attn_processor": _ATTENTION,
    "set_attention_backend": _ATTENTION,
    "fuse_qkv_projections": "the weights are on the mesh in a form of its own",
    "requires_grad_": _TRAINING,
    "train": _TRAINING,
    "enable_gradient_checkpointing": _TRAINING,
    "save_pretrained": "the store's form is the mesh's own; copy the checkpoint's folder",
    "load_lora_adapter": "load LoRAs with pipe.load_lora_weights",
}


class Vae(OnMesh):
    """The VAE, whose latents are as Diffusers has them: denormalised."""

    def __init__(
        self,
        model: Any,
        config: Mapping[str, Any],
        tell: Callable[[str, str], None],
        decode: Callable[[torch.Tensor], np.ndarray],
        encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Wrap the VAE.

        Args:
            model: the decoder.
            config: the checkpoint's.
            tell: see `OnMesh`.
            decode: makes frames [B, F, H, W, 3] from 0 to 1 of normalised latents.
            encode: makes mean and log-variance [1, C, T, H / 8, W / 8] of frames [F, H, W, 3] from -1 to 1.
        """
        super().__init__("vae", model, {**_VAE, **config}, tell)
        self._decode, self._encode = decode, encode

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode denormalised latents [B, C, T, H / 8, W / 8].

        Returns:
            Frames [B, 3, F, H, W] from -1 to 1; values beyond are cut, which Diffusers leaves to its video processor.

        Raises:
            InputError: latents of another shape, or that are not finite.
        """
        if not isinstance(z, torch.Tensor) or z.ndim != 5:
            raise InputError(f"vae.decode takes latents [B, C, T, H / 8, W / 8], not {type(z).__name__}")
        frames = torch.from_numpy(self._decode(normalise(z.float(), self.config)))
        sample = frames.permute(0, 4, 1, 2, 3) * 2 - 1
        return DecoderOutput(sample) if return_dict else (sample,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[LatentDistribution]:
        """Encode frames [B, 3, F, H, W] from -1 to 1; F is 6k + 1, H and W are multiples of 8.

        Returns:
            The distribution of the latents, not normalised, as Diffusers has it.

        Raises:
            InputError: frames of another shape or range, or a checkpoint without an encoder.
        """
        if not isinstance(x, torch.Tensor) or x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point():
            raise InputError("vae.encode takes a floating-point tensor [B, 3, F, H, W] from -1 to 1")
        each = [self._encode(video.detach().to("cpu", torch.float32).permute(1, 2, 3, 0)) for video in x]
        made = LatentDistribution(torch.cat([mean for mean, _ in each]), torch.cat([log for _, log in each]))
        return EncoderOutput(made) if return_dict else (made,)


class Scheduler:
    """The configuration of Mochi's sampler, and the noise levels of the last call.

    Attributes:
        config: of the checkpoint.
        timesteps: [n], `1000 (1 - sigma)` of each step, as Diffusers' scheduler has them with `invert_sigmas`.
        sigmas: [n + 1], `1 - sigma`, as Diffusers has them.
    """

    order = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Take the configuration; there are no noise levels before the first call."""
        self.config = Config({"num_train_timesteps": 1000, "shift": 1.0, **config})
        self.timesteps = torch.zeros(0)
        self.sigmas = torch.zeros(0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changed: Any) -> Scheduler:
        """Return a scheduler of a configuration, which the pipeline takes if it is its own."""
        return cls({**config, **changed})

    def show(self, sigmas: list[float]) -> None:
        """Take over the n + 1 noise levels of a call, 1 down to 0."""
        self.sigmas = 1 - torch.tensor(sigmas, dtype=torch.float32)
        self.timesteps = self.sigmas[:-1] * 1000

    def set_timesteps(self, *_: Any, **__: Any) -> None:
        """Refuse to be set.

        Raises:
            InputError: always.
        """
        raise InputError("the scheduler is set by the call: give num_inference_steps, sigmas, or a preset")

    def step(self, *_: Any, **__: Any) -> Any:
        """Refuse a step of one's own.

        Raises:
            InputError: always.
        """
        raise InputError("steps are made on the mesh: give solver= to the call, or on_state to change latents")
