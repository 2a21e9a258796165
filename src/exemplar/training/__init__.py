"""The reward model and the distilled retriever: losses, sampling, the loop."""
