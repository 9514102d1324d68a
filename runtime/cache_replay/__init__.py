"""What caches of other sizes and eviction policies would have found in a workload, beside the best that any could."""

from runtime.cache_replay.replay import Access, Replay, accesses_of, replay
from runtime.cache_replay.table import HitRates, hit_rate_table

__all__ = ["Access", "HitRates", "Replay", "accesses_of", "hit_rate_table", "replay"]
