"""Training of the AsymmDiT together with the T5 encoder, by flow matching on latents of the tiny world.

The conventions are those of `models.mochi.sampling.schedule`: sigma is the share of noise, the model's time is `(1 -
sigma) * 1000`, and its prediction estimates `z0 - eps`.

Latents are [B, 12, T', H / 8, W / 8], token ids and masks [B, L].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.machine.errors import InputError
from models.mochi.sampling.schedule import TIMESTEPS
from models.tiny.hints import Heads
from models.tiny.training import Batch, Losses, Schedule, Training, mixed_precision

# 8 heads divide over every TP that divides 8. The visual width is 8 x 32 = 256.
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "num_layers": 4,
    "pooled_projection_dim": 128,
    "text_embed_dim": 128,
    "time_embed_dim": 64,
}
TEXT_ENCODER: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 32,
    "num_heads": 4,
    "d_ff": 256,
    "num_layers": 3,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
SCHEDULE = Schedule(steps=25000, rate=1e-3, warmup=500, fall=0.4, ema=0.9995)
BATCH = 256
# Before that, the text encoder alone learns to say which words name what.
TEXT_SCHEDULE = Schedule(steps=5000, rate=1.5e-3, warmup=100, fall=0.5, ema=0.998)
TEXT_BATCH = 128
# Every fourth batch is of the small size.
SMALL_EVERY = 4
# Share of captions that are dropped, so that the model also learns the unconditional prediction that guidance needs.
DROPPED = 0.1
# Share of noise levels that are drawn from `HIGH` to 1 alone; the others are uniform from 0 to 1, as Genmo's. Which
# things there are, where, and which way they go is decided near sigma 0.95. In a run with uniform ones alone the shapes
# were sharp, but many videos for two things showed three, and up and down were often confused.
HIGH_SHARE, HIGH = 0.4, 0.75
# Weights, beside the error of the velocity, of naming what a token shows, and of naming the things of the caption.
# Both teach which colour, shape and motion belong together, which the velocity alone teaches slowly.
SEEN_WEIGHT, TOLD_WEIGHT = 0.04, 0.04
# The block after which the visual tokens are read.
SEEN_AFTER = 1
# Radians per position. Frames are numbered 0, 1, 2; rows and columns span about +-72 on a 4 x 4 grid, and +-78 by
# +-118 on one of 4 x 6.
ROPE_STD = (0.7, 0.02, 0.02)


class TextToVelocity(torch.nn.Module):
    """The T5 encoder and the AsymmDiT, trained as one model from token ids to the velocity."""

    def __init__(self, vocab_size: int, seed: int = 0):
        super().__init__()
        from diffusers import MochiTransformer3DModel
        from transformers import T5Config, T5EncoderModel

        torch.manual_seed(seed)
        self.text_encoder = T5EncoderModel(
            T5Config(vocab_size=vocab_size, pad_token_id=0, eos_token_id=1, **TEXT_ENCODER)
        )
        transformer: Any = MochiTransformer3DModel(**TRANSFORMER)
        with torch.no_grad():
            transformer.pos_frequencies.normal_().mul_(torch.tensor(ROPE_STD).view(3, 1, 1))
            transformer.proj_out.weight.zero_()
            transformer.proj_out.bias.zero_()
        self.transformer = transformer
        self.heads = Heads(
            TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"], TEXT_ENCODER["d_model"]
        )
        # What the last forward gave to the heads.
        self.visual: Any = None
        self.text: Any = None
        transformer.transformer_blocks[SEEN_AFTER].register_forward_hook(self._keep)

    def _keep(self, block: Any, args: Any, made: Any) -> None:
        self.visual = made[0]

    def forward(
        self, latents_BCTHW: torch.Tensor, sigma_B: torch.Tensor, ids_BL: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity, [B, 12, T', H / 8, W / 8].

        An all-False row of the mask is the empty prompt, whose features are zeros.
        """
        self.text = read_text(self.text_encoder, ids_BL, mask_BL)
        return self.transformer(latents_BCTHW, self.text, (1 - sigma_B) * TIMESTEPS, mask_BL).sample


def read_text(text_encoder: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Return the features of captions, [B, L, D], zero for padding and for a dropped caption.

    The encoder needs at least one token to attend to.
    """
    seen = mask_BL | ~mask_BL.any(1, keepdim=True)
    embeds = text_encoder(ids_BL, attention_mask=seen.long()).last_hidden_state
    return embeds * mask_BL[..., None]


class BatchedAttention:
    """The joint attention of Diffusers' `MochiAttnProcessor2_0` for a whole batch at once, with padding tokens masked.

    Diffusers' own version loops over the batch. Rows of padding tokens differ (there they are zeros), and nothing reads
    them.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return visual and text outputs, projected, for visual tokens [B, N, D] and text tokens [B, L, D]."""
        visual, text = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
        q, k, v = (getattr(attn, name)(hidden_states).unflatten(2, (attn.heads, -1)) for name in visual)
        text_q, text_k, text_v = (
            getattr(attn, name)(encoder_hidden_states).unflatten(2, (attn.heads, -1)) for name in text
        )
        q, k = (_rotate(x, *image_rotary_emb) for x in (attn.norm_q(q), attn.norm_k(k)))
        q = torch.cat([q, attn.norm_added_q(text_q)], 1).transpose(1, 2)
        k = torch.cat([k, attn.norm_added_k(text_k)], 1).transpose(1, 2)
        v = torch.cat([v, text_v], 1).transpose(1, 2)
        count = hidden_states.shape[1]
        hidden = ~torch.nn.functional.pad(attention_mask.bool(), (count, 0), value=True)[:, None, None]
        if q.device.type == "cpu":
            # The gradient of fused attention is many times slower on the CPU at this size.
            scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
            joint = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype) @ v
        else:
            q, k = q.to(v.dtype), k.to(v.dtype)
            seen = (~hidden).expand(-1, 1, q.shape[2], -1)
            joint = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        joint = joint.transpose(1, 2).flatten(2)
        made, made_text = joint[:, :count], joint[:, count:]
        made = attn.to_out[1](attn.to_out[0](made))
        return made, attn.to_add_out(made_text) if hasattr(attn, "to_add_out") else made_text


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def fast_model(vocab_size: int, device: str, compiled: bool = False) -> TextToVelocity:
    """Return a new model on a device, in its faster form."""
    model = TextToVelocity(vocab_size).to(device)
    for block in model.transformer.transformer_blocks:
        block.attn1.processor = BatchedAttention()
        if compiled:
            block.forward = torch.compile(block.forward, dynamic=False)  # hooks stay outside
    if compiled:
        for layer in model.text_encoder.encoder.block:
            layer.compile(dynamic=False)
    return model


def load_weights(model: TextToVelocity, checkpoint: Path) -> None:
    """Give a model the weights of a checkpoint's transformer and text encoder.

    Raises:
        InputError: they cannot be read, or are of another architecture or tokenizer.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = {
        "transformer": checkpoint / "transformer" / "diffusion_pytorch_model.safetensors",
        "text_encoder": checkpoint / "text_encoder" / "model.safetensors",
    }
    for name, file in files.items():
        try:
            found = getattr(model, name).load_state_dict(load_file(file), strict=False)
        except (OSError, RuntimeError, SafetensorError) as error:
            about = str(error).splitlines()[-1].strip()
            raise InputError(f"{file} cannot be trained on ({about}): give a checkpoint of this training") from error
        # The embeddings are written once and used under two names.
        missing = [key for key in found.missing_keys if key != "encoder.embed_tokens.weight"]
        if missing or found.unexpected_keys:
            raise InputError(
                f"{file} is of another model: {missing[:3]} missing, {found.unexpected_keys[:3]} unknown: give a "
                "checkpoint of this training"
            )


def start_training(
    model: TextToVelocity, folder: Path, schedule: Schedule = SCHEDULE, graphs: bool = False
) -> Training:
    """Begin the training whose state is in `folder`, or continue it. A batch is the arguments of `velocity_losses`."""

    def losses(*batch: torch.Tensor) -> Losses:
        return velocity_losses(model, *batch)

    return Training(model, losses, schedule, folder, graphs)


class Captions(NamedTuple):
    """The captions of N scenes of one size, and what is said of the scenes beside them; see `models.tiny.hints`.

    Attributes:
        ids: token ids of R captions of each, padded with 0, [N, R, L].
        named: which thing each text token names, [N, R, L].
        shown: which thing each visual token shows, [N, tokens].
        things: shape, colour and motion of both things, [N, 2, 3].
    """

    ids: torch.Tensor
    named: torch.Tensor
    shown: torch.Tensor
    things: torch.Tensor

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Captions:
        """Return the captions with each tensor changed."""
        return Captions(*map(change, self))


@dataclass(frozen=True)
class Source:
    """Scenes of one size to train on.

    Attributes:
        latents: normalised as the transformer takes them, [N, 12, T', H / 8, W / 8]; empty for captions alone.
        captions: of the scenes.
        buckets: indices into the N x R captions, and the length to which the captions of each bucket are cut.
    """

    latents: torch.Tensor
    captions: Captions
    buckets: tuple[tuple[torch.Tensor, int], ...]

    @classmethod
    def of(cls, latents: torch.Tensor, captions: Captions, lengths: Sequence[int] = ()) -> Source:
        """Sort captions by their length into buckets.

        Args:
            latents: see the class.
            captions: of the same scenes.
            lengths: longest caption of each bucket but the last, rising. Short batches cost less.
        """
        count, found, low = (captions.ids != 0).sum(-1).flatten(), [], 0
        for length in (*lengths, captions.ids.shape[-1]):
            found.append((((count > low) & (count <= length)).nonzero()[:, 0], length))
            low = length
        buckets = tuple(bucket for bucket in found if len(bucket[0]))
        return cls(latents, captions, buckets)


def train_text(
    model: TextToVelocity,
    source: Source,
    folder: Path,
    schedule: Schedule = TEXT_SCHEDULE,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    graphs: bool = False,
) -> None:
    """Train the text encoder and its head on captions alone; the model then has the averaged weights.

    The state of the training is in `folder`.
    """
    part = torch.nn.ModuleDict({"encoder": model.text_encoder, "told": model.heads.told})

    def losses(ids: torch.Tensor, mask: torch.Tensor, named: torch.Tensor, things: torch.Tensor) -> Losses:
        return {"loss": model.heads.told_loss(read_text(model.text_encoder, ids, mask), named, things)}

    def batch_of(step: int) -> Batch:
        _, pair, length = draw(source, step, TEXT_BATCH)
        captions = source.captions
        ids = captions.ids.flatten(0, 1)[pair, :length].long()
        named = captions.named.flatten(0, 1)[pair, :length]
        return ids, ids != 0, named, captions.things[pair // captions.ids.shape[1]]

    Training(part, losses, schedule, folder, graphs).run(batch_of, progress)


def run_training(
    training: Training,
    sources: Sequence[Source],
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    batch: int = BATCH,
) -> Any:
    """Train to the end, and return the model with averaged weights.

    Args:
        training: see `start_training`.
        sources: the wide and the small size; or the wide one alone.
        progress: called as `progress(done, total, text)`.
        batch: number of scenes of a step.
    """

    def batch_of(step: int) -> Batch:
        return make_batch(sources[-1 if step % SMALL_EVERY == SMALL_EVERY - 1 else 0], step, batch)

    return training.run(batch_of, progress).eval()


def make_batch(source: Source, step: int, count: int) -> Batch:
    """Return the random scenes, noise, noise levels, captions and hints of a step."""
    device = source.latents.device
    generator, pair, length = draw(source, step, count)
    captions = source.captions
    scene = pair // captions.ids.shape[1]
    chosen = source.latents[scene].float()
    tokens = captions.ids.flatten(0, 1)[pair, :length].long()
    kept = torch.rand((count, 1), generator=generator, device=device) >= DROPPED
    sigma, high = torch.rand((2, count), generator=generator, device=device)
    sigma = torch.where(high < HIGH_SHARE, HIGH + (1 - HIGH) * sigma, sigma)
    eps = torch.randn(chosen.shape, generator=generator, device=device)
    hints = captions.shown[scene], captions.things[scene], captions.named.flatten(0, 1)[pair, :length] * kept
    return chosen, eps, sigma, tokens, (tokens != 0) & kept, *hints


def draw(source: Source, step: int, count: int) -> tuple[torch.Generator, torch.Tensor, int]:
    """Return the generator of a step, the random captions of one bucket, and the length to which they are cut."""
    device = source.captions.ids.device
    generator = torch.Generator(device).manual_seed(step)
    sizes = torch.tensor([float(len(pairs)) for pairs, _ in source.buckets])
    pairs, length = source.buckets[int(torch.multinomial(sizes, 1, generator=torch.Generator().manual_seed(step)))]
    return generator, pairs[torch.randint(len(pairs), (count,), generator=generator, device=device)], length


def velocity_losses(
    model: TextToVelocity,
    latents_BCTHW: torch.Tensor,
    eps_BCTHW: torch.Tensor,
    sigma_B: torch.Tensor,
    ids_BL: torch.Tensor,
    mask_BL: torch.Tensor,
    shown_BN: torch.Tensor,
    things_BK3: torch.Tensor,
    named_BL: torch.Tensor,
) -> Losses:
    """Return the mean squared error of the velocity `z0 - eps` at the noise levels `sigma`, and those of the hints."""
    share = sigma_B.view(-1, 1, 1, 1, 1)
    noisy = share * eps_BCTHW + (1 - share) * latents_BCTHW
    with mixed_precision(latents_BCTHW.device):
        velocity = model(noisy, sigma_B, ids_BL, mask_BL)
    error = (velocity.float() - (latents_BCTHW - eps_BCTHW)).square().mean()
    seen = model.heads.seen_loss(model.visual, shown_BN, things_BK3)
    told = model.heads.told_loss(model.text, named_BL, things_BK3)
    return {"loss": error + SEEN_WEIGHT * seen + TOLD_WEIGHT * told, "velocity": error, "seen": seen, "told": told}
