"""The PyTorch reference: random Diffusers models, reference models on the host, and the metrics for comparison.

Only tests and the makers of test data use it. Code that runs on a mesh never does.
"""
