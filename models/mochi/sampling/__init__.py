"""Sampling: the schedule, and the loop that integrates the flow from noise to latents."""
