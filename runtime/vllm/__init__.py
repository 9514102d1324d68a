"""What Bursar knows of vLLM: its settings, how to start it, and how to read its counters."""
