-- As 0009 for usage.
ALTER TABLE hold MODIFY SETTING min_bytes_for_wide_part = 268435456
