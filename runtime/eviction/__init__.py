"""Eviction policies, shared by the simulator and, out of vLLM's tree, its CPU-offload tier.

Every module here needs nothing but the standard library and none of the others, for the plugin ships them too.
"""
