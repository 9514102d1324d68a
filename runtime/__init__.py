"""What runs models: the port Bursar calls them through, and the runtimes behind it."""
