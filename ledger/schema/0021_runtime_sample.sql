-- What each runtime did since the row before, from its telemetry, and what its own counters say now. Times but `wall_us` are
-- accelerator time: capacity = busy + idle + lost, and busy = attributed + unattributed + what came to be in flight. `state` is
-- answers or away. Counters are those of the runtime since it started. `sources` is JSON: up to when each engine is accounted.
CREATE TABLE IF NOT EXISTS runtime_sample
(
    ts_us Int64 EPHEMERAL,
    ts DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(ts_us, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    runtime String CODEC(ZSTD(1)),
    replica String CODEC(ZSTD(1)),
    state String CODEC(ZSTD(1)),
    running Int64 CODEC(T64, ZSTD(1)),
    waiting Int64 CODEC(T64, ZSTD(1)),
    kv_usage_permille Int64 CODEC(T64, ZSTD(1)),
    prompt_tokens Int64 CODEC(T64, ZSTD(1)),
    generation_tokens Int64 CODEC(T64, ZSTD(1)),
    prefix_queries Int64 CODEC(T64, ZSTD(1)),
    prefix_hits Int64 CODEC(T64, ZSTD(1)),
    preemptions Int64 CODEC(T64, ZSTD(1)),
    accelerators Int64 CODEC(T64, ZSTD(1)),
    nusd_per_hour Int64 CODEC(T64, ZSTD(1)),
    steps Int64 CODEC(T64, ZSTD(1)),
    wall_us Int64 CODEC(T64, ZSTD(1)),
    capacity_us Int64 CODEC(T64, ZSTD(1)),
    busy_us Int64 CODEC(T64, ZSTD(1)),
    idle_us Int64 CODEC(T64, ZSTD(1)),
    lost_us Int64 CODEC(T64, ZSTD(1)),
    attributed_us Int64 CODEC(T64, ZSTD(1)),
    unattributed_us Int64 CODEC(T64, ZSTD(1)),
    foreign_us Int64 CODEC(T64, ZSTD(1)),
    in_flight_us Int64 CODEC(T64, ZSTD(1)),
    kv_block_us Int64 CODEC(T64, ZSTD(1)),
    energy_uj Int64 CODEC(T64, ZSTD(1)),
    energy_source String CODEC(ZSTD(1)),
    nvml_busy_permille Int64 CODEC(T64, ZSTD(1)),
    losses Int64 CODEC(T64, ZSTD(1)),
    uncertain Int64 CODEC(T64, ZSTD(1)),
    sources String CODEC(ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (runtime, ts, event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_parts_to_merge_at_once = 10, min_bytes_for_wide_part = 268435456
