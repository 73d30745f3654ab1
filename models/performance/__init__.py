"""Performance of the program, seen from outside the model: counts of ops, FLOPs, bytes and memory, and times.

Times come from a cost model or from measurements.
"""
