"""Kubeflow Pipelines: what a pod calls, and how pipelines are compiled, run, sent and watched."""
