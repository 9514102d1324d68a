"""What must hold in every run, and is checked in every run.

InvariantViolated
├── RequestsLost      offered is not finished and refused
├── TokensLost        what was computed, found and lost is not what the requests needed
├── BlocksLost        free, held and cached blocks are not all there are
├── TimeReversed      a step began before the one before it ended, or a request ended before it began
└── HitUncomputed     content was found in the prefix cache that nobody had computed
"""

from runtime.sim.engine import Engine


class InvariantViolated(Exception):
    """The simulator has a fault: what it computed cannot be; please report it with the workload and the deployment."""


class RequestsLost(InvariantViolated):
    """Offered is not finished and refused."""


class TokensLost(InvariantViolated):
    """What was computed, found and lost is not what the requests needed."""


class BlocksLost(InvariantViolated):
    """Free, held and cached blocks are not all there are."""


class TimeReversed(InvariantViolated):
    """A step began before the one before it ended, or a request ended before it began."""


class HitUncomputed(InvariantViolated):
    """Content was found in the prefix cache that nobody had computed."""


def check_block_sum(engine: Engine) -> None:
    """Blank, private and findable blocks are all blocks; BlocksLost."""
    pool = engine.pool
    if pool.blank + pool.private + pool.findable != pool.num_blocks or min(pool.blank, pool.private) < 0:
        raise BlocksLost(
            f"{pool.blank} blank, {pool.private} private and {pool.findable} findable blocks, of {pool.num_blocks}"
        )


def check_holdings(engine: Engine) -> None:
    """The blocks that are not free are those that the requests of the batch hold, counted anew; BlocksLost."""
    jobs = engine.jobs()
    block_size = engine.config.block_size
    shared = {block_hash for job in jobs for block_hash in job.held}
    private = sum(-(-engine.computed_tokens(job) // block_size) - len(job.held) for job in jobs)
    if private != engine.pool.private or private + len(shared) != engine.pool.used_blocks:
        raise BlocksLost(
            f"{len(jobs)} requests hold {private} private and {len(shared)} findable blocks; the pool has "
            f"{engine.pool.private} private and {engine.pool.used_blocks} used"
        )


def check_at_rest(engine: Engine, needed_tokens: int, output_tokens: int) -> None:
    """An engine without work holds nothing, computed what its requests needed, and put out what they asked for.

    Raises BlocksLost or TokensLost.
    """
    if engine.pool.free_blocks != engine.pool.num_blocks:
        raise BlocksLost(f"{engine.pool.used_blocks} blocks are held when nothing is left to compute")
    totals = engine.totals
    if totals.computed_tokens + totals.reused_tokens - totals.lost_tokens != needed_tokens:
        raise TokensLost(
            f"{totals.computed_tokens} tokens computed, {totals.reused_tokens} found and {totals.lost_tokens} lost; "
            f"the requests needed {needed_tokens}"
        )
    if totals.generation_tokens != output_tokens:
        raise TokensLost(f"{totals.generation_tokens} tokens came out, and the requests asked for {output_tokens}")
