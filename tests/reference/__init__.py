"""A second implementation of the kernels' rules, to compare the simulator with.

It imports the standard library alone, and was written from the kernel sources and the postings,
not from the simulator: plain integers and dictionaries, one class for each world.
"""
