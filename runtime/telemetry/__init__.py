"""What an engine tells of its steps: bounded files in one folder, written by the engine and followed by Bursar.

One folder a runtime. Each source in it (`engine-0`: the engine core of rank 0; `requests-0`: its front end) writes
segments `SOURCE.N.jsonl`, N = 0, 1, 2, …; a full segment is followed by the next, and only the last two are kept, so a
folder is bounded and whoever follows it may be away for a while. A line is a JSON array, its kind first:

    ["open", 1, source, session, segment, unix_us, {facts}]       first line of each segment; 1: the format's version
    ["state", [[handle, request_id, context_tokens], …]]          second line: who is in the batch now
    ["join", handle, request_id, prompt_tokens, context_tokens, queued_us]    context_tokens: found in the prefix cache
    ["step", begin_us, end_us, used_blocks, running, waiting, [[handle, tokens], …]]
    ["leave", handle, reason, output_tokens]                      reason: finished | aborted | preempted
    ["finished", request_id, reason, prompt_tokens, cached_tokens, output_tokens, queued_us, prefill_us, decode_us,
     e2e_us, preemptions]                                         of requests-N: what the runtime itself counts
    ["close", unix_us]                                            the engine ended by itself

Times are Unix microseconds, durations microseconds. `session` is new at each start of the engine. A step lists those of
the batch that computed other than one decoded token: the tokens of a prefill chunk, or 0 for one that was not
scheduled. Every other handle that has joined and not left decoded one token, over its context, which grew by one.
`running` and `waiting` are how many ran and waited when the step was scheduled, `used_blocks` those when it was done. A
handle is a small integer that is used again only after its leave. A preempted request joins again, under a new handle.
The facts are `engine` (vllm or sim, and its version), `model`, `block_size`, `num_blocks`, `accelerators`, and `knobs`:
the value of each knob by its name; and `lost`: how many lines of this session could not be written so far (a full disk,
a folder that was gone). After such a loss a new segment begins, whose `state` is true again, and the segment before may
end within a line. `off` says why an engine that serves on tells of no steps; such a segment is closed at once. Segments
are regular files; N has nine digits at most, and numbers that begin anew are those of another folder. A line with a
step of more than an hour, more than 100,000 accelerators, or a count of 2**31 or more cannot be read.
"""
