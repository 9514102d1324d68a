-- What people and processes did to the gateway: configuration, keys, grants, policies, starts; detail is JSON.
CREATE TABLE IF NOT EXISTS control
(
    ts_us Int64 EPHEMERAL,
    ts DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(ts_us, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    action String CODEC(ZSTD(1)),
    actor String CODEC(ZSTD(1)),
    subject String CODEC(ZSTD(1)),
    digest String CODEC(ZSTD(1)),
    detail String CODEC(ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (action, ts, event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_parts_to_merge_at_once = 10
