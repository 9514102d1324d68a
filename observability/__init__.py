"""Signals about Bursar itself: metrics and traces."""
