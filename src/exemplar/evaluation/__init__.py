"""In-context evaluation, the statistics behind the gate, and the report."""
