"""Workloads: when requests come, how long they are and which prefixes they share; never what they say."""
