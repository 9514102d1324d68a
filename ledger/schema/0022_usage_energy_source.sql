-- Where energy_uj comes from: `measured` by NVML, `estimated` from the watts that the runtime is said to draw while busy, and
-- empty where there is none.
ALTER TABLE usage ADD COLUMN IF NOT EXISTS energy_source String CODEC(ZSTD(1)) AFTER energy_uj
