"""Training of the tiny Mochi: its world of moving shapes, its captions, its tokenizer, and the training itself.

The trained checkpoint ships beside its reader, in `weight_cache/checkpoints/tiny`. `models.jobs.evaluate` evaluates it.
"""
