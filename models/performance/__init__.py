"""Performance of the program: ops, FLOPs, bytes and memory counted from outside the model, and times from a cost model
or from measurements.
"""
