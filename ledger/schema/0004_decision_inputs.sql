-- Each distinct policy input, once by digest, with what was decided; reasons, obligations and input are JSON.
CREATE TABLE IF NOT EXISTS decision_inputs
(
    ts_us Int64 EPHEMERAL,
    ts DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(ts_us, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    decision_id String CODEC(ZSTD(1)),
    input_digest String CODEC(ZSTD(1)),
    policy_revision String CODEC(ZSTD(1)),
    allow Bool,
    reasons String CODEC(ZSTD(1)),
    obligations String CODEC(ZSTD(1)),
    input String CODEC(ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (input_digest, ts, event_id)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_parts_to_merge_at_once = 10
