"""Facts about machines: known systems, the cards and environment of this host, child processes, and a search for device
tensors.
"""
