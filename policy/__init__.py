"""Rego policies: engines that evaluate them and the cache of their decisions."""
