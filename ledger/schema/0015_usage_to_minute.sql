CREATE MATERIALIZED VIEW IF NOT EXISTS usage_to_minute TO usage_by_minute AS
SELECT
    toDateTime(toStartOfMinute(source.ts), 'UTC') AS time,
    writer, org, team, app, model, runtime, status,
    toInt64(count()) AS rows,
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
FROM usage AS source
GROUP BY time, writer, org, team, app, model, runtime, status
