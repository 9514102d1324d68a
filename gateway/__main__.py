"""`python -m gateway`: the command line, as `bursar`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
