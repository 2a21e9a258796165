"""The versions of retrievers in MLflow's registry: their files, their aliases, their story."""
