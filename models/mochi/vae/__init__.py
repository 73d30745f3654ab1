"""The VAE decoder, which turns latents into frames."""

from models.mochi.vae.decoder import MochiVaeDecoder
from models.mochi.vae.split import Split, choose_split

__all__ = ["MochiVaeDecoder", "Split", "choose_split"]
