"""The VAE: from latents to frames."""
