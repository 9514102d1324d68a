"""Checks of an answer before it is released: each is given texts or calls and says what it found, and where."""
