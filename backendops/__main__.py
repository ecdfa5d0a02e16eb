"""`python -m backendops` is the `backendops` command."""

from backendops.cli import main

if __name__ == "__main__":
    main()
