"""Reading checkpoints: what a converted-weight store will be built on."""
