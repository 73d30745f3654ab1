"""The VAE decoder, which turns latents into frames."""
