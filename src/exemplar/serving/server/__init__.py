"""The retriever over HTTP: `exemplar serve`."""
