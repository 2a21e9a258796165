"""The retriever in other frameworks' terms, one module a framework; each needs its library."""
