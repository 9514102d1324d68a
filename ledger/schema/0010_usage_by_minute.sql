-- What usage adds up to in each minute. Refused rows and adjustments are told apart by their status; `rows` counts rows,
-- adjustments included. No fsync: what a power loss takes is added again from usage (ledger/rollups.py).
CREATE TABLE IF NOT EXISTS usage_by_minute
(
    time DateTime('UTC') CODEC(Delta, ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    org String CODEC(ZSTD(1)),
    team String CODEC(ZSTD(1)),
    app String CODEC(ZSTD(1)),
    model String CODEC(ZSTD(1)),
    runtime String CODEC(ZSTD(1)),
    status String CODEC(ZSTD(1)),
    rows SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    input_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    cached_input_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    cache_write_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    output_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    reasoning_tokens SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    gpu_us SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    queue_us SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    duration_us SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    list_cost_nusd SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    gpu_cost_nusd SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    saved_cost_nusd SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    kv_block_us SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1)),
    energy_uj SimpleAggregateFunction(sum, Int64) CODEC(T64, ZSTD(1))
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (org, time, team, app, model, runtime, status, writer)
SETTINGS non_replicated_deduplication_window = 1000, min_parts_to_merge_at_once = 10
