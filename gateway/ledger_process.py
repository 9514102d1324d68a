"""`python -m gateway.ledger_process`: what `python -m ledger` runs, on the compiled modules where there are any."""

import runpy

from gateway import compiled

if __name__ == "__main__":
    compiled.start()
    runpy.run_module("ledger", run_name="__main__")
