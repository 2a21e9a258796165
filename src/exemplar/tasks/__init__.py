"""The tasks as data: definitions, metrics and the embedded sample set."""
