"""The text encoder, which encodes a prompt into caption features."""
