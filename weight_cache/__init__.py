"""The store of converted weights, and the reading of checkpoints (`weight_cache.checkpoints`)."""
