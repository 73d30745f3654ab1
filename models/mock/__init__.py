"""The mock Tenstorrent mesh: real ttnn on a cluster that only a descriptor describes.

Known to tests and to the command line; model code never imports it.
"""
