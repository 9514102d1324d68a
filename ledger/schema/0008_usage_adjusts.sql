-- An adjustment is a row of usage with the status `adjusted`, whose amounts are differences, and `adjusts` is the event_id
-- of the row that it corrects; empty in all others.
ALTER TABLE usage ADD COLUMN IF NOT EXISTS adjusts String CODEC(ZSTD(1)) AFTER org_seq
