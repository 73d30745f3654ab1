"""The PyTorch reference: random Diffusers models, reference models on the host, and the metrics for comparison.

Only tests use it. Code that runs on a mesh never imports it.
"""
