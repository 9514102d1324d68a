-- Ids are String, not UUID: several may be empty, a caller may bring its own event_id, and the engine sorts a UUID by its
-- second half, which throws away the time order of UUIDv7. ZSTD packs their hexadecimal to about half.
-- Names are String too: the dictionaries of LowCardinality took over a quarter of what a request costs to insert, and ZSTD
-- packs names that repeat as well.
-- ts_us is how a row arrives, ts how it stays.
-- The envelope of every event, in the order of its writer: seq has no gaps, sha256 is the record's hash in hexadecimal.
CREATE TABLE IF NOT EXISTS events
(
    ts_us Int64 EPHEMERAL,
    ts DateTime64(6, 'UTC') DEFAULT fromUnixTimestamp64Micro(ts_us, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id String CODEC(ZSTD(1)),
    kind String CODEC(ZSTD(1)),
    org String CODEC(ZSTD(1)),
    request_id String CODEC(ZSTD(1)),
    sha256 String CODEC(ZSTD(1)),
    writer String CODEC(ZSTD(1)),
    seq UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (writer, seq)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, min_parts_to_merge_at_once = 10
