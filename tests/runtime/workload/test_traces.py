"""Trace files: each format is read as it is meant, one line at a time, and what is wrong is told with its line."""

import os
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from runtime.workload.bursar import write_trace
from runtime.workload.opening import format_of, open_workload, traces_folder
from runtime.workload.port import Arrival, TraceError, WorkloadError
from runtime.workload.rows import LINE_BYTES_MAX

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:46.6805909,396,109\r
2023-11-16 18:15:50.9951690,1,1"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-12 00:00:00.014845+00:00,2162,5
2024-05-12 02:00:01+02:00,7,1
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 3000.5, "input_length": 1025, "output_length": 500, "hash_ids": [0, 1, 2]}

{"timestamp": 4000, "input_length": 513, "output_length": 512, "hash_ids": [0, 3, 4]}
"""
BURSAR = """{"bursar_trace":1,"name":"acme","block_tokens":16}
{"at_us":10,"prompt_tokens":33,"output_tokens":1,"blocks":[[0,2],[7,1]]}
{"at_us":30,"prompt_tokens":5,"output_tokens":9}
{"at_us":70,"prompt_tokens":40,"output_tokens":9,"priority":2,"after":0}
"""


def written(folder: Path, text: str | bytes, name: str = "trace.x") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_an_azure_trace_has_lengths_and_times_from_its_first_row(tmp_path: Path) -> None:
    workload = open_workload(written(tmp_path, AZURE, "conv.csv"))
    assert workload.name == "conv"
    assert list(workload) == [Arrival(0, 374, 44), Arrival(0, 396, 109), Arrival(4_314_579, 1, 1)]


def test_azure_times_of_2024_have_a_zone(tmp_path: Path) -> None:
    assert [each.at_us for each in open_workload(written(tmp_path, AZURE_2024))] == [0, 985_155]


def test_azure_columns_stand_in_any_order_beside_others(tmp_path: Path) -> None:
    text = "\ufeffGeneratedTokens,Region, TIMESTAMP ,ContextTokens\n5,eu,2023-11-16 18:15:46,7\n"
    assert list(open_workload(written(tmp_path, text))) == [Arrival(0, 7, 5)]


def test_a_mooncake_trace_has_ids_of_512_tokens(tmp_path: Path) -> None:
    workload = open_workload(written(tmp_path, MOONCAKE))
    assert workload.block_tokens == 512
    assert list(workload) == [
        Arrival(0, 1024, 5, (0, 1)),
        Arrival(500, 1025, 500, (0, 1, 2)),
        Arrival(1_000_000, 513, 512, (0, 3, 4)),
    ]


def test_bursars_trace_has_ranges_of_ids_and_requests_that_wait(tmp_path: Path) -> None:
    workload = open_workload(written(tmp_path, BURSAR))
    assert (workload.name, workload.block_tokens) == ("acme", 16)
    assert list(workload) == [
        Arrival(0, 33, 1, (0, 1, 7)),
        Arrival(20, 5, 9),
        Arrival(70, 40, 9, priority=2, after=0),
    ]


@pytest.mark.parametrize("text", [AZURE, MOONCAKE, BURSAR])
def test_whatever_is_written_as_bursars_trace_reads_back_the_same(tmp_path: Path, text: str) -> None:
    first = open_workload(written(tmp_path, text))
    copy = tmp_path / "copy.jsonl"
    with copy.open("wb") as file:
        assert write_trace(file, first) == 3
    second = open_workload(copy)
    assert list(second) == list(first)
    assert (second.name, second.block_tokens) == (first.name, first.block_tokens)


def test_iterating_anew_begins_anew_and_two_may_run_at_once(tmp_path: Path) -> None:
    workload = open_workload(written(tmp_path, MOONCAKE))
    assert list(zip(workload, workload, strict=True)) == [(each, each) for each in workload]


def test_a_format_is_found_by_content_and_may_be_insisted_on(tmp_path: Path) -> None:
    found = {format_of(written(tmp_path, text)) for text in (AZURE, MOONCAKE, BURSAR)}
    assert found == {"azure", "mooncake", "bursar"}
    with pytest.raises(TraceError, match=r"trace\.x:1: has no column TIMESTAMP, ContextTokens, GeneratedTokens"):
        open_workload(written(tmp_path, MOONCAKE), "azure")
    with pytest.raises(TraceError, match="no trace format 'burst': there are azure, mooncake, bursar"):
        open_workload(written(tmp_path, MOONCAKE), "burst")


def test_a_bare_name_is_looked_up_among_the_recorded_traces(tmp_path: Path) -> None:
    environ = {"BURSAR_TRACES": str(tmp_path)}
    written(tmp_path, AZURE, "conv.csv")
    assert len(list(open_workload("conv", environ=environ))) == 3
    assert len(list(open_workload("conv.csv", environ=environ))) == 3
    with pytest.raises(TraceError, match=r"there is no trace other here or in .*, which BURSAR_TRACES can replace"):
        open_workload("other", environ=environ)
    assert traces_folder({}).parts[-2:] == ("shared", "traces")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
        ('{"bursar_trace":1,"name":"a","block_tokens":16}\n', "has no rows"),
        ("TIMESTAMP,ContextTokens\n1,2\n", ":1: has no column GeneratedTokens"),
        (AZURE.replace("374", "0"), ":2: ContextTokens is 0: a length is from 1"),
        (AZURE.replace("109", "-4"), ":3: GeneratedTokens is -4: a length is from 1"),
        (AZURE.replace("109", "1.5"), ":3: GeneratedTokens is '1.5': it must be a whole number"),
        (AZURE.replace("109", "9" * 5000), ":3: GeneratedTokens is '999"),
        (AZURE.replace("109", ""), ":3: GeneratedTokens is '': it must be a whole number"),
        (AZURE.replace("374,44", "374"), ":2: has 2 fields: the header has more"),
        (AZURE.replace("50.99", "40.99"), ":4: comes 5,685,421 us before the row above it: sort the trace"),
        (AZURE.replace("2023-11-16 18:15:50", "yesterday"), ":4: TIMESTAMP is 'yesterday.9951690': it must be like"),
        (AZURE.replace("2023-11-16 18:15:50", "2023-13-16 18:15:50"), ":4: TIMESTAMP is .*, which is no time"),
        (MOONCAKE.replace('"output_length": 5,', ""), ":1: has no output_length"),
        (MOONCAKE.replace("1025", '"1025"'), ":2: input_length is '1025': it must be a whole number"),
        (MOONCAKE.replace("1025", "true"), ":2: input_length is True: it must be a whole number"),
        (MOONCAKE.replace("[0, 1]", "[0]"), ":1: has 1 hash_ids: 1024 tokens in blocks of 512 take 2, and with"),
        (MOONCAKE.replace("[0, 1, 2]", "[0, 1, 2, 3, 4, 5]"), ":2: has 6 hash_ids"),
        (MOONCAKE.replace("[0, 1, 2]", "[0, -1, 2]"), ":2: hash_ids must be a list of whole numbers"),
        (MOONCAKE.replace("[0, 1, 2]", "7"), ":2: hash_ids must be a list"),
        (MOONCAKE.replace("3000.5", "NaN"), ":2: is not JSON"),
        (MOONCAKE.replace("3000.5", "-1"), ":2: timestamp is -1: it must be milliseconds"),
        (MOONCAKE.replace("4000", "2000"), ":4: comes 1,000,500 us before the row above it"),
        (MOONCAKE.replace('{"timestamp": 4000', "[7]\n{"), ":4: is not a JSON object"),
        (BURSAR.replace('trace":1', 'trace":2'), ":1: is of version 2, and this Bursar reads 1"),
        (BURSAR.replace('"name":"acme",', ""), ":1: has no name"),
        (BURSAR.replace("16}", "0}"), ":1: block_tokens must be a whole number from 1"),
        (BURSAR.replace("[7,1]", "[7,2]"), ":2: blocks must be a list of .first id, count., at most 3 ids"),
        (BURSAR.replace("[7,1]", "[7,0]"), ":2: blocks must be a list"),
        (BURSAR.replace(",[7,1]", ""), ":2: has 2 ids of blocks: 33 tokens take 3"),
        (BURSAR.replace("[[0,2],[7,1]]", "{}"), ":2: blocks must be a list"),
        (BURSAR.replace('"after":0', '"after":2'), ":4: after is 2: it must be the index of a request above"),
        ("a,b,c\n1,2,3\n", "is of no known format .azure, mooncake, bursar.: it begins with 'a,b,c'"),
        ("{oops", ":1: is not JSON: "),
        ('{"a": 1}', "is of no known format"),
        (b"\x1f\x8b\x08\0", "is compressed: unpack it first"),
        (b"\x7fELF\0\0\n", "is binary"),
        (b"TIMESTAMP," + b"x" * LINE_BYTES_MAX, ":1: is longer than 1,048,576 bytes"),
    ],
)
def test_what_is_wrong_is_told_with_its_file_and_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError, match=said) as raised:
        list(open_workload(path))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", tmp_path):
        with pytest.raises(TraceError, match="is no file: a trace is read several times"):
            open_workload(path)
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        open_workload(tmp_path / "missing.csv")


def test_an_excerpt_is_a_part_of_the_time_at_another_rate(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:15:{second:02},{second + 1},1\n" for second in range(60))
    path = written(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    whole = list(open_workload(path))
    assert list(open_workload(path, requests_max=3)) == whole[:3]
    part = open_workload(path, from_s=10, until_s=20, rate=2)
    assert [(each.at_us, each.prompt_tokens) for each in part] == [(500_000 * at, 11 + at) for at in range(10)]
    assert len(list(open_workload(path, from_s=10, requests_max=100))) == 50
    with pytest.raises(WorkloadError, match=r"no request of trace arrives from 60 s until its end"):
        list(open_workload(path, from_s=60))
    for wrong in (
        {"requests_max": 0},
        {"from_s": -1},
        {"from_s": 5, "until_s": 5},
        {"rate": 0},
        {"rate": float("nan")},
    ):
        with pytest.raises(WorkloadError, match=next(iter(wrong)) if len(wrong) == 1 else "until_s"):
            open_workload(path, **wrong)


def test_requests_that_wait_for_others_can_be_counted_but_not_cut_by_time(tmp_path: Path) -> None:
    path = written(tmp_path, BURSAR)
    assert len(list(open_workload(path, requests_max=2))) == 2
    with pytest.raises(WorkloadError, match="acme has requests that wait for others"):
        list(open_workload(path, rate=2))


def test_a_trace_takes_the_same_memory_however_long_it_is(tmp_path: Path) -> None:
    """Ten times the rows, and the peak stays: lines are read one by one, from a file opened anew."""

    def peak_bytes(rows: int) -> int:
        line = '{"timestamp":%d,"input_length":4096,"output_length":9,"hash_ids":[0,1,2,3,4,5,6,7]}\n'
        path = written(tmp_path, "".join(line % number for number in range(rows)))
        tracemalloc.start()
        assert sum(1 for _ in open_workload(path)) == rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small, large = peak_bytes(2_000), peak_bytes(20_000)
    assert large < small + 16_384 < 1 << 20


def test_a_reader_that_stops_early_has_read_no_further(tmp_path: Path) -> None:
    """What is wrong behind what was asked for is never seen."""
    path = written(tmp_path, MOONCAKE + "not JSON\n")
    assert len(list(islice(open_workload(path), 3))) == 3
    with pytest.raises(TraceError, match=":5: is not JSON"):
        list(open_workload(path))
