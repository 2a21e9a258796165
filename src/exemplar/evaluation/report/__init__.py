"""report.html: one page without outside resources, of plain values."""
