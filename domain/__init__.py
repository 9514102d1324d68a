"""Frozen values and pure arithmetic, shared by every layer above; standard library only."""
