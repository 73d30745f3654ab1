"""Checkpoints, and the store of weights converted from them.

`weight_cache.checkpoints` reads checkpoints in every form. `weight_cache.store` keeps the converted weights of a model:
it finds them by a key (`key`, `versions`), makes them where they are missing (`convert`, `tensor_file`), checks them
(`entry`, `manifest`, `digest`) and lists them (`listing`). `plan` computes sizes without weights, and `precision` says
in which dtype each parameter is stored. `host` loads a checkpoint component into a PyTorch module, without the store.
"""
