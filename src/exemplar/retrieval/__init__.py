"""Proposing pool examples for a query: BM25, dense, and the baselines."""
