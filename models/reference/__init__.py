"""The PyTorch oracle: random Diffusers models and the metrics that compare with them.

Known to tests and to the maker of the `tiny` checkpoint; never to code that runs on a mesh.
"""
