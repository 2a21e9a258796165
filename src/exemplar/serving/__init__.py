"""A retriever in use: in a Python process, behind MLflow, and over HTTP (`server/`)."""

from exemplar.serving.query import Demonstration, Filters, Query, Selection
from exemplar.serving.retriever import Retriever, answer

__all__ = ["Demonstration", "Filters", "Query", "Retriever", "Selection", "answer"]
