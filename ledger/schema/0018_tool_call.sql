-- What became of the tools that requests offered and that models called; reasons is JSON. `tool_kind` is function or mcp:
-- `kind` is the record's own.
CREATE TABLE IF NOT EXISTS tool_call
(
    ts_us Int64 EPHEMERAL,
    ts DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(ts_us, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    decision_id String CODEC(ZSTD(1)),
    org String CODEC(ZSTD(1)),
    team String CODEC(ZSTD(1)),
    app String CODEC(ZSTD(1)),
    key_id String CODEC(ZSTD(1)),
    run_id String CODEC(ZSTD(1)),
    tool String CODEC(ZSTD(1)),
    server String CODEC(ZSTD(1)),
    tool_kind String CODEC(ZSTD(1)),
    phase String CODEC(ZSTD(1)),
    verdict String CODEC(ZSTD(1)),
    reasons String CODEC(ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (org, tool, toStartOfHour(ts), event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_parts_to_merge_at_once = 10, min_bytes_for_wide_part = 268435456
