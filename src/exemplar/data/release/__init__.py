"""The data that the paper's authors released: read into our files, and written back as it was."""
