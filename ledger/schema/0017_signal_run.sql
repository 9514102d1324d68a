-- A signal that counts what requests did names the run that they belong to, and the first of these requests; both are
-- empty in the others, and in rows from before there were these columns.
ALTER TABLE signal ADD COLUMN IF NOT EXISTS run_id String CODEC(ZSTD(1)) AFTER app, ADD COLUMN IF NOT EXISTS request_id String CODEC(ZSTD(1)) AFTER run_id
