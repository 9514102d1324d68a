"""Routing policies: which replica serves a request. Shared by the simulator and the gateway."""
