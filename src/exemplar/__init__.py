"""Exemplar: learns which few-shot examples a language model learns most from, and serves them."""

__version__ = "0.1.0"
