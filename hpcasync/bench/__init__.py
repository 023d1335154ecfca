"""Benchmarks of the engine: what is reached, the machine's limit measured in the same run, and the ratio."""
