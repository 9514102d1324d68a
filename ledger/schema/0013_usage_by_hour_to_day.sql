CREATE MATERIALIZED VIEW IF NOT EXISTS usage_by_hour_to_day TO usage_by_day AS
SELECT
    toDateTime(toStartOfDay(source.time), 'UTC') AS time,
    writer, org, team, app, model, runtime, status,
    sum(source.rows) AS rows,
    sum(source.input_tokens) AS input_tokens,
    sum(source.cached_input_tokens) AS cached_input_tokens,
    sum(source.cache_write_tokens) AS cache_write_tokens,
    sum(source.output_tokens) AS output_tokens,
    sum(source.reasoning_tokens) AS reasoning_tokens,
    sum(source.gpu_us) AS gpu_us,
    sum(source.queue_us) AS queue_us,
    sum(source.duration_us) AS duration_us,
    sum(source.list_cost_nusd) AS list_cost_nusd,
    sum(source.gpu_cost_nusd) AS gpu_cost_nusd,
    sum(source.saved_cost_nusd) AS saved_cost_nusd,
    sum(source.kv_block_us) AS kv_block_us,
    sum(source.energy_uj) AS energy_uj
FROM usage_by_hour AS source
GROUP BY time, writer, org, team, app, model, runtime, status
