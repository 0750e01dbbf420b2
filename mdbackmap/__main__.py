"""``python -m mdbackmap``."""

from mdbackmap.cli.main import main

main()
