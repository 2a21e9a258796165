"""Runs in MLflow, and the store that they are in."""
