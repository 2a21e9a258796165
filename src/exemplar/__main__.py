"""`python -m exemplar`."""

from exemplar.cli import main

main()
