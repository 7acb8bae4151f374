"""Reproduction kit for *Bagging-Based Model Merging for Robust General Text Embeddings* (BOOM, arXiv 2602.05787).

The packages follow the way of the data: ``data`` -> ``models`` -> ``training`` -> ``merging`` -> ``evaluation`` ->
``reporting``; ``study`` wires them into one graph and ``cli`` is the command ``boom``. Importing this package loads
nothing else: no torch, no network, no files written.
"""

__version__ = "0.1.0"
