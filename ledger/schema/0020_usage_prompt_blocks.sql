-- How long a prompt's text is, and for each of the blocks that it fills the keyed hash of the text up to the block's end:
-- which prompts begin alike, and never what they say. 0 and empty where the configuration does not ask for it.
ALTER TABLE usage
    ADD COLUMN IF NOT EXISTS prompt_bytes Int64 CODEC(T64, ZSTD(1)) AFTER org_seq,
    ADD COLUMN IF NOT EXISTS prompt_blocks Array(UInt64) CODEC(ZSTD(1)) AFTER prompt_bytes
