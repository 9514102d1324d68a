"""The OpenAI protocol as runtimes speak it: usage reports and event streams."""
