"""The graph of artifacts a profile needs, and the runner that executes the notebooks over it."""
