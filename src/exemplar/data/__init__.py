"""Validated Parquet files in and out, and the sources that examples come from."""
