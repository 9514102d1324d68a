"""What Bursar adds to a vLLM server: a scheduler that tells what each step computed, and a logger of what vLLM counts.

Both write into the folder that the environment variable `BURSAR_TELEMETRY` names, and do nothing without it.
"""
