"""Runs seeds of the simulation: `python -m tests.simulation.run --seed N` says all that happens in one of them."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.audit import Violation
from tests.simulation.world import SOUND, Planted, World


def command(seed: int) -> str:
    """What runs this seed again."""
    return f"python -m tests.simulation.run --seed {seed}"


def failure_of(seed: int, planted: Planted = SOUND) -> str | None:
    """What a seed shows to be wrong, or None."""
    world = World(seed, planted)
    try:
        world.run()
    except Violation as violation:
        return f"seed {seed}: {violation}\n    {command(seed)}"
    except Exception as error:
        raise AssertionError(f"seed {seed} ended with {error!r}: {command(seed)}") from error
    return None


def main() -> int:
    """Run one seed and print its story, or many and print those that fail; 1 when one does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    if asked.seed is not None:
        world = World(asked.seed)
        try:
            world.run()
        finally:
            sys.stdout.write("\n".join([*world.trace, world.audit.fingerprint(), ""]))
        return 0
    failures = [failure for seed in range(asked.first, asked.first + asked.seeds) if (failure := failure_of(seed))]
    sys.stdout.write("\n".join(failures) + f"\n{len(failures)} of {asked.seeds} seeds fail\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
