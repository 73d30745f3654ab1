"""Counting what the program does: ops, FLOPs, bytes and memory, seen from outside the model."""
