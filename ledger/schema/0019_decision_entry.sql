-- Which entry point was asked, whether a shadow bundle answered, whose answer was not in force, and how an OPA server
-- names the evaluation in its own log.
ALTER TABLE decision_inputs
    ADD COLUMN IF NOT EXISTS entry String DEFAULT 'bursar/admission/decision' CODEC(ZSTD(1)) AFTER decision_id,
    ADD COLUMN IF NOT EXISTS is_shadow Bool AFTER entry,
    ADD COLUMN IF NOT EXISTS engine_decision_id String CODEC(ZSTD(1)) AFTER is_shadow
