-- Numbers the rows of each org that a writer writes, 1, 2, 3 and so on, so that whoever sees one org alone sees gaps; 0 in
-- rows from before there was this column.
ALTER TABLE usage ADD COLUMN IF NOT EXISTS org_seq UInt64 CODEC(T64, ZSTD(1)) AFTER charges
