"""Facts about machines, settings of this host, child processes, and a search for device tensors."""
