"""`bursar runtime simulate` and `cache`: answers in seconds, the same each time, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.prices import GpuRate
from runtime.calibration.engine import CalibratedEngine
from runtime.calibration.ranges import Ranges
from runtime.calibration.stored import Calibration, Device
from runtime.sim.deployment import Overhead
from runtime.step_time import StepTime
from tests.gateway.test_cli_commands import DONE, NO, WRONG_USAGE, answer, ran

KNOBS = {"max_model_len": 2048, "max_num_seqs": 8, "max_num_batched_tokens": 512, "kv_cache_memory_bytes": 1 << 24}
ENGINE = CalibratedEngine("vllm 0.32.0", "m", 32, 511, 1, KNOBS, "cpu")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one calibration, which saw no more than eight requests in a step."""
    ranges = Ranges(
        {"prefill tokens in a step": (8, 512), "requests in a step": (1, 8), "tokens of a request": (10, 2_048)}
    )
    made = Calibration(
        ENGINE, Device("cpu", 2), StepTime(3_000), Overhead(arrival_us=2_000), GpuRate(0, 1, 2), ranges, 1_700_000_000
    )
    made.save(tmp_path / "calibrations" / "small.json")
    return tmp_path


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Sixty requests that share one of three beginnings, ten a second."""
    described: dict[str, Any] = {
        "kind": "synthetic",
        "name": "sixty",
        "requests": 60,
        "block_tokens": 32,
        "arrivals": {"kind": "poisson", "rate_per_s": 10},
        "sessions": {
            "kind": "single",
            "prompt": {"kind": "constant", "value": 100},
            "output": {"kind": "constant", "value": 20},
            "system": {"count": 3, "tokens": {"kind": "constant", "value": 256}},
        },
    }
    path = tmp_path / "sixty.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return str(path)


def simulated(home: Path, spec: str, *arguments: str) -> Any:
    return answer("runtime", "simulate", "--workload", spec, "--calibration", "small", "--json", *arguments, home=home)


def test_a_workload_is_answered_in_numbers_with_intervals(home: Path, spec: str) -> None:
    found = simulated(home, spec, "--slo", "ttft_ms=500,itl_ms=50")
    assert (found["requests"], found["finished"], found["refused"]) == (60, 60, 0)
    assert found["output_tokens"] == 60 * 20
    for spread in ("ttft_us", "itl_us", "tpot_us", "e2e_us"):
        mean = found["latencies"][spread]["mean"]
        assert mean["low"] <= mean["value"] <= mean["high"]
        assert found["latencies"][spread]["p50"]["value"] <= found["latencies"][spread]["p99"]["value"]
    assert found["rates"]["good_share"]["value"] > 0.9
    assert 0.5 < found["rates"]["hit_rate"]["value"] < 256 / 356
    assert found["rates"]["gpu_us_per_token"]["value"] > 0
    assert found["outside"] == []
    assert found["calibration"] == Calibration.load(home / "calibrations" / "small.json").digest


def test_the_same_run_has_the_same_digest_and_another_seed_another(home: Path, spec: str) -> None:
    first, again, other = (simulated(home, spec, *seed)["digest"] for seed in ((), (), ("--seed", "7")))
    assert first == again != other


def test_knobs_change_the_answer(home: Path, spec: str) -> None:
    """One seat serves one after another: everybody waits longer, and nobody shares a step."""
    many, one = simulated(home, spec), simulated(home, spec, "--set", "max_num_seqs=1")
    assert one["engine"]["max_num_seqs"] == 1
    assert one["latencies"]["ttft_us"]["mean"]["value"] > 3 * many["latencies"]["ttft_us"]["mean"]["value"]
    assert one["usage"]["running_mean"] <= 1
    halved = simulated(home, spec, "--set", "kv_cache_memory_bytes=8388608")
    assert halved["engine"]["num_blocks"] == 255


@pytest.mark.parametrize("routing", ["round_robin", "least_load", "prefix_affinity"])
def test_replicas_share_the_load(home: Path, spec: str, routing: str) -> None:
    found = simulated(home, spec, "--replicas", "2", "--routing", routing)
    assert (found["replicas"], found["finished"]) == (2, 60)


@pytest.mark.parametrize("eviction", ["lru", "arc", "reuse"])
def test_a_cache_that_is_too_small_gives_up_by_the_policy_that_is_named(home: Path, spec: str, eviction: str) -> None:
    found = simulated(home, spec, "--eviction", eviction, "--set", "num_gpu_blocks_override=66")
    assert found["finished"] == 60


def test_runs_of_several_seeds_are_averaged(home: Path, spec: str) -> None:
    found = simulated(home, spec, "--seeds", "3")
    assert found["requests"] == 180
    mean = found["latencies"]["e2e_us"]["mean"]
    assert mean["low"] < mean["value"] < mean["high"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn_the_same_each_time(home: Path, spec: str, suffix: str) -> None:
    first, second = home / f"a{suffix}", home / f"b{suffix}"
    for path in (first, second):
        simulated(home, spec, "--chart", str(path))
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 5_000


def test_people_get_tables(home: Path, spec: str) -> None:
    done = ran(DONE, "runtime", "simulate", "--workload", spec, "--calibration", "small", home=home)
    for said in ("sixty: 60 of 60 requests", "first token, ms", "hit rate", "Latency"):
        assert said in done.stdout
    engine = "engine of 8 seats, 512 tokens a step, context of 2,048 tokens, KV cache of 16,352 tokens in blocks of 32"
    assert engine in done.stdout
    assert done.stderr == ""


def rate(table: str, name: str) -> str:
    """What a table of rates says of one."""
    [row] = [line for line in table.splitlines() if line.startswith(f"│ {name} ")]
    return row.strip("│ ").split("│")[1].strip()


def test_what_comes_when_is_given_and_has_no_interval(home: Path, spec: str) -> None:
    """Sixty requests come when they come, however often they are drawn again."""
    arguments = ("runtime", "simulate", "--workload", spec, "--calibration", "small")
    per_s = simulated(home, spec)["rates"]["requests_per_s"]
    assert (per_s["low"], per_s["high"]) == (None, None)
    table = ran(DONE, *arguments, home=home).stdout
    assert rate(table, "requests / s") == f"{per_s['value']:.4g}"
    assert " to " in rate(table, "hit rate")
    several = simulated(home, spec, "--seeds", "3")["rates"]["requests_per_s"]
    assert several["low"] < several["value"] < several["high"]


def test_a_trace_without_prefixes_has_no_hit_rate(home: Path) -> None:
    """Its requests come again with the same lengths, and nobody knows whether with the same beginning."""
    trace = home / "own.jsonl"
    rows = [{"at_us": at * 1000, "prompt_tokens": 640, "output_tokens": 5} for at in range(9)]
    header = {"bursar_trace": 1, "name": "own", "block_tokens": 16}
    trace.write_text("\n".join(map(json.dumps, [header, *rows])), encoding="utf-8")
    arguments = ("runtime", "simulate", "--trace", str(trace), "--calibration", "small")
    assert answer(*arguments, "--json", home=home)["rates"]["hit_rate"] is None
    done = ran(DONE, *arguments, home=home)
    assert rate(done.stdout, "hit rate") == "-"
    assert "own does not say which prompts begin alike" in done.stderr
    refused = ran(WRONG_USAGE, "runtime", "cache", "--trace", str(trace), "--blocks", "5", home=home)
    assert refused.stderr.startswith("bursar: own has no blocks")
    assert "ledger.prompt_blocks" in refused.stderr


def test_refused_requests_say_why(home: Path, spec: str) -> None:
    arguments = ("--set", "max_model_len=320")
    found = simulated(home, spec, *arguments)
    assert (found["refused"], found["refusals"]) == (60, {"context_exceeded": 60})
    told = ran(DONE, "runtime", "simulate", "--workload", spec, "--calibration", "small", *arguments, home=home)
    assert "60 refused: prompt and answer longer than max_model_len (320 tokens)" in told.stdout
    assert simulated(home, spec, *arguments, "--seeds", "2")["refusals"] == {"context_exceeded": 120}


def test_long_times_are_told_in_seconds(home: Path, spec: str) -> None:
    """One seat, and six hundred times as many requests as it can serve."""
    crowd = Path(spec).read_text(encoding="utf-8").replace("rate_per_s: 10", "rate_per_s: 6000")
    Path(spec).write_text(crowd.replace("requests: 60", "requests: 4000"), encoding="utf-8")
    arguments = ("--workload", spec, "--calibration", "small", "--set", "max_num_seqs=1")
    done = ran(DONE, "runtime", "simulate", *arguments, home=home)
    assert "first token, s" in done.stdout
    assert "between tokens, ms" in done.stdout
    assert "e+" not in done.stdout


def test_intervals_follow_from_the_run_and_not_from_how_its_seed_was_named(home: Path, spec: str) -> None:
    described = Path(spec).with_name("seeded.yaml")
    described.write_text(Path(spec).read_text(encoding="utf-8") + "seed: 7\n", encoding="utf-8")
    assert simulated(home, spec, "--seed", "7") == simulated(home, str(described))


def test_beyond_what_was_seen_is_said_and_refused_when_strict(home: Path, spec: str) -> None:
    """All at once, on an engine that takes four times as many tokens into a step as were seen."""
    crowd = Path(spec).read_text(encoding="utf-8").replace("rate_per_s: 10", "rate_per_s: 1000")
    Path(spec).write_text(crowd, encoding="utf-8")
    arguments = ("runtime", "simulate", "--workload", spec, "--calibration", "small", "--set", "max_num_seqs=64")
    busy = (*arguments, "--set", "max_num_batched_tokens=2048")
    done = ran(DONE, *busy, home=home)
    assert "beyond what the calibration saw: prefill tokens in a step" in done.stderr
    found = json.loads(ran(DONE, *busy, "--json", home=home).stdout)
    assert {each["feature"] for each in found["outside"]} >= {"prefill tokens in a step"}
    refused = ran(NO, *busy, "--strict", "--json", home=home)
    assert refused.stdout == ""
    assert "the run goes beyond what the calibration saw" in refused.stderr


def test_without_a_calibration_that_is_said(home: Path, spec: str) -> None:
    done = ran(DONE, "runtime", "simulate", "--workload", spec, home=home)
    assert "no calibration was named" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "max_num_seqs=0"), "max_num_seqs must be from 1"),
        (("--set", "max_num_seqs=100", "--set", "max_num_batched_tokens=50"), "max_num_batched_tokens (50) must be at"),
        (("--set", "max_num_seqs"), "--set takes KNOB=VALUE"),
        (("--set", "seats=4"), "no knob seats in the catalogue"),
        (("--set", "max_num_seqs=4", "--set", "max_num_seqs=5"), "names max_num_seqs twice"),
        (("--slo", "ttft=5"), "--slo takes"),
        (("--slo", "ttft_ms=0"), "--slo takes"),
        (("--eviction", "fifo"), "--eviction takes lru, arc, reuse"),
        (("--routing", "random"), "--routing takes"),
        (("--replicas", "2"), "several replicas need a routing policy"),
        (("--chart", "a.gif"), "--chart takes"),
        (("--trace", "another"), "name one workload"),
        (("--calibration", "nobody"), "there is no calibration nobody: "),
        (("--runtime", "nobody"), "make it with `bursar runtime calibrate nobody`"),
        (("--set", "dtype=float16"), "the simulator does not model dtype"),
        (("--set", "kv_cache_memory_bytes=16777216"), "set num_gpu_blocks_override"),
        (("--set", "max_model_len=99999999"), "max_model_len must be from 16 to 16777216 tokens"),
        (("--set", "num_gpu_blocks_override=100"), "num_gpu_blocks_override (100) counts one block that vLLM never"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    home: Path, spec: str, arguments: tuple[str, ...], said: str
) -> None:
    done = ran(WRONG_USAGE, "runtime", "simulate", "--workload", spec, *arguments, "--json", home=home)
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_where_a_calibration_was_looked_for_is_said(home: Path, spec: str) -> None:
    for option in ("--calibration", "--runtime"):
        done = ran(WRONG_USAGE, "runtime", "simulate", "--workload", spec, option, "nobody", home=home)
        assert str(home / "calibrations" / "nobody.json") in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "has schema 99"),
        ({"created_unix_s": 5}, "was changed since it was made"),
        ({"step_time": {"base_us": 1}}, "something amiss"),
    ],
)
def test_a_calibration_that_cannot_be_trusted_is_refused(
    home: Path, spec: str, change: dict[str, Any], said: str
) -> None:
    path = home / "calibrations" / "small.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}), encoding="utf-8")
    done = ran(WRONG_USAGE, "runtime", "simulate", "--workload", spec, "--calibration", "small", home=home)
    assert said in done.stderr


def test_caches_of_several_sizes_are_compared(tmp_path: Path) -> None:
    """Two prefixes in turn: a cache of two blocks keeps neither for its next request, one of four keeps both."""
    rows = [
        {
            "timestamp": at * 1000,
            "input_length": 1024,
            "output_length": 1,
            "hash_ids": [10 * (at % 2), 10 * (at % 2) + 1],
        }
        for at in range(10)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ("runtime", "cache", "--trace", str(trace), "--blocks", "2,4", "--chart", str(tmp_path / "rates.svg"))
    small, large = answer(*arguments, "--json", home=tmp_path)["rows"]
    assert (small["capacity_blocks"], small["lru"]) == (2, 0)
    assert large["lru"] == large["optimum"] == large["infinite"] == pytest.approx(0.8)
    assert (tmp_path / "rates.svg").stat().st_size > 1_000
    assert "80.0%" in ran(DONE, *arguments, home=tmp_path).stdout
    refused = ran(WRONG_USAGE, "runtime", "cache", "--trace", str(trace), "--blocks", "0", home=tmp_path)
    assert "--blocks takes" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--strict",), "--strict holds to what a calibration saw"), (("--chart", "away/run.svg"), "make away")],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_simulated(
    home: Path, spec: str, arguments: tuple[str, ...], said: str
) -> None:
    """Strictness without a calibration would hold to nothing, and a picture without a folder would be lost."""
    assert said in ran(WRONG_USAGE, "runtime", "simulate", "--workload", spec, *arguments, home=home).stderr


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_simulated(home: Path, spec: str) -> None:
    (home / "run.svg").mkdir()
    arguments = ("runtime", "simulate", "--workload", spec, "--chart", str(home / "run.svg"))
    assert "--chart names what cannot be written" in ran(WRONG_USAGE, *arguments, home=home).stderr
