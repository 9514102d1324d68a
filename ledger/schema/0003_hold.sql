-- The life of holds: opened, renewed, voided. A settled or expired hold ends as a row of usage.
CREATE TABLE IF NOT EXISTS hold
(
    ts_us Int64 EPHEMERAL,
    ts DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(ts_us, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    hold_id String CODEC(ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    action String CODEC(ZSTD(1)),
    org String CODEC(ZSTD(1)),
    team String CODEC(ZSTD(1)),
    app String CODEC(ZSTD(1)),
    user String CODEC(ZSTD(1)),
    key_id String CODEC(ZSTD(1)),
    model String CODEC(ZSTD(1)),
    expires_at_us Int64 CODEC(T64, ZSTD(1)),
    charges Array(Tuple(budget String, counter String, window_start DateTime('UTC'), resource String, amount Int64)) CODEC(ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (org, toStartOfHour(ts), event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_parts_to_merge_at_once = 10
