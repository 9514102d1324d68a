"""`bursar`, or `python -m gateway`: the command line, on the compiled modules where there are any."""

from gateway import compiled

compiled.start()

from gateway.cli import main  # noqa: E402  what it imports is found compiled only from here on

if __name__ == "__main__":
    main()
