"""`python -m shiftvit` is the command line."""

from shiftvit.cli.main import main

main()
