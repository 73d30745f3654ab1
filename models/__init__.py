"""The TTNN port of Mochi 1: model, building blocks, mesh parallelism, reference and mock."""
