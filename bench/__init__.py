"""Benchmarks: what Bursar costs, as ratios against references measured in the same run."""
