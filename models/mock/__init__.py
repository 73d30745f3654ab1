"""The mock Tenstorrent mesh: the real ttnn library on a cluster that only a descriptor file describes.

Tests and the command line choose it. Model code never imports it; `models.device` imports it to open a mesh.
"""
