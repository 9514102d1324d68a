-- Two files per column made a batch of 20,000 rows cost twice what one of 10,000 does: most of an insert was spent on creating
-- files. Parts of up to 256 MiB are one file, and so is what most merges write.
ALTER TABLE usage MODIFY SETTING min_bytes_for_wide_part = 268435456
