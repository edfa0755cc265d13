"""`python -m service` is `loradock`."""

from service.cli import main

main()
