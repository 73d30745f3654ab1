"""The VAE: from latents to frames."""

from models.mochi.vae.decoder import MochiVaeDecoder
from models.mochi.vae.split import Split, choose_split

__all__ = ["MochiVaeDecoder", "Split", "choose_split"]
