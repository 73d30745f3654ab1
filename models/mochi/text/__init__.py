"""The text encoder: from a prompt to caption features."""
