"""A deterministic LLM runtime: one engine core, served in real time or stepped in simulated time."""
