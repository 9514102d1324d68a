"""What of the engine is served to others: functions, tables of `system`, formats and settings, each by name.

Whatever is not listed is refused, so what a newer engine brings is not served until someone adds it here.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

# What clients call the ledger's database, whatever its name in a server is.
DATABASE = "default"
_OURS = "database = currentDatabase()"
# The views that stand in the place of tables of `system` live here.
VIEWS = "served"

# What functions over values are for; of another category, or of none, a function is served only if it is named below.
_CATEGORIES = """
Aggregate Functions,Arithmetic,Arrays,Bit,Bitmap,Comparison,Conditional,Dates and Times,Distance,Encoding,Encryption,
Financial,Geo,Geo Polygon,Hash,IP Address,JSON,Logical,Map,Mathematical,Null,NumericIndexedVector,QBit,Random Number,
Rounding,String,String Replacement,String Search,String Splitting,Time Series,Time Window,Tuple,Type Conversion,URL,UUID
"""
# Functions of their arguments alone, and what clients ask at connect.
_FUNCTIONS = """
bar blockNumber byteSize caseWithExpression colorOKLABToSRGB colorOKLCHToSRGB colorSRGBToOKLAB colorSRGBToOKLCH
countDigits currentDatabase currentSchemas currentUser defaultValueOfArgumentType defaultValueOfTypeName digits
dumpColumnStructure errorCodeToName finalizeAggregation flipCoordinates formatQuery formatQueryOrNull
formatQuerySingleLine formatQuerySingleLineOrNull formatReadableDecimalSize formatReadableQuantity formatReadableSize
formatReadableTimeDelta getSizeOfEnumType getSubcolumn identity ignore initializeAggregation isConstant
isDecimalOverflow lowCardinalityIndices lowCardinalityKeys MACNumToString MACStringToNum MACStringToOUI materialize
minSampleSizeContinuous minSampleSizeConversion neighbor normalizeQuery normalizedQueryHash parseISO8601Duration
parseReadableSize parseReadableSizeOrNull parseReadableSizeOrZero parseTimeDelta revision rowNumberInAllBlocks
rowNumberInBlock runningAccumulate runningConcurrency runningDifference runningDifferenceStartingWithFirstValue throwIf
toColumnTypeName toTypeName transform uptime variantElement variantType version visibleWidth _CAST
"""
# These show stacks or throw on purpose, or take a time that grows with the square of one value's length or faster: the
# engine looks between blocks of rows only at whether a statement is to end, and hours pass in a single block.
_NO_FUNCTIONS = """
flameGraph aggThrow
arrayFold arrayLevenshteinDistance arraySimilarity countSubstringsCaseInsensitive damerauLevenshteinDistance
editDistance geometryIntersect jaro kolmogorovSmirnovTest mannWhitneyUTest polygons
"""
# The only table functions that reach nothing beyond the statement itself.
_TABLE_FUNCTIONS = "numbers numbers_mt zeros generateSeries generate_series values"
# Tables of `system` that say nothing of the rows, paths or other callers of this ledger.
_SYSTEM_TABLES = """
one numbers numbers_mt zeros zeros_mt functions table_functions formats data_type_families keywords time_zones
collations table_engines aggregate_function_combinators contributors licenses
"""
# Formats that write to the statement's result and read no file for it, with what they are to HTTP.
_TEXT = """
TabSeparated TSV TabSeparatedWithNames TSVWithNames TabSeparatedWithNamesAndTypes TSVWithNamesAndTypes TabSeparatedRaw
TSVRaw TabSeparatedRawWithNames TSVRawWithNames TabSeparatedRawWithNamesAndTypes TSVRawWithNamesAndTypes
"""
_CSV = "CSV CSVWithNames CSVWithNamesAndTypes"
_JSON = """
JSON JSONStrings JSONCompact JSONCompactStrings JSONColumns JSONCompactColumns JSONColumnsWithMetadata JSONObjectEachRow
JSONEachRow JSONStringsEachRow JSONCompactEachRow JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes
JSONCompactStringsEachRow JSONCompactStringsEachRowWithNames JSONCompactStringsEachRowWithNamesAndTypes JSONLines NDJSON
PrettyNDJSON PrettyJSONEachRow
"""
_PLAIN = """
Pretty PrettyCompact PrettyCompactMonoBlock PrettyMonoBlock PrettySpace PrettySpaceMonoBlock PrettyNoEscapes
PrettyCompactNoEscapes PrettySpaceNoEscapes Vertical Markdown Values TSKV LineAsString SQLInsert Null Hash
"""
_BINARY = """
Native RowBinary RowBinaryWithNames RowBinaryWithNamesAndTypes Arrow ArrowStream Parquet ORC Avro MsgPack BSONEachRow
RawBLOB Npy
"""
_FAMILIES = "arrow avro bson csv decimal json markdown msgpack native orc parquet pretty sql_insert tsv values"
# Settings that HTTP clients send to say how they speak; they change nothing here that is not listed with the server.
_SPOKEN = """
add_http_cors_header buffer_size cancel_http_readonly_queries_on_client_close client_protocol_version database
default_format enable_http_compression http_headers_progress_interval_ms http_zlib_compression_level password query
query_id quota_key send_progress_in_http_headers session_check session_id session_timeout user wait_end_of_query
"""

_PLAIN_TEXT = re.compile(r"[\w .,:;|/+\t-]{0,64}")
_DIGITS = 20

CATEGORIES = frozenset(_CATEGORIES.strip().replace("\n", "").split(","))
FUNCTIONS = frozenset(_FUNCTIONS.lower().split())
# Of the served categories, whatever begins so, for combinators of aggregate functions stand behind their names.
NO_FUNCTIONS = tuple(_NO_FUNCTIONS.lower().split())
TABLE_FUNCTIONS = frozenset(_TABLE_FUNCTIONS.lower().split())
SYSTEM_TABLES = frozenset(_SYSTEM_TABLES.split())
CONTENT_TYPES: Mapping[str, str] = {
    **dict.fromkeys(_TEXT.split(), "text/tab-separated-values; charset=UTF-8"),
    **dict.fromkeys(_CSV.split(), "text/csv; charset=UTF-8"),
    **dict.fromkeys(_JSON.split(), "application/json; charset=UTF-8"),
    **dict.fromkeys(_PLAIN.split(), "text/plain; charset=UTF-8"),
    **dict.fromkeys(_BINARY.split(), "application/octet-stream"),
    "XML": "application/xml; charset=UTF-8",
}
SPOKEN = frozenset(_SPOKEN.split())


class Bound(NamedTuple):
    """The values a setting may have: whole numbers from `least` to `most`, or one of `words`, or any plain text."""

    least: int = 0
    most: int = -1
    words: frozenset[str] = frozenset()

    def allows(self, value: str) -> bool:
        """Whether a setting may have this value."""
        if self.words:
            return value in self.words
        if self.most < 0:
            return bool(_PLAIN_TEXT.fullmatch(value))
        value = {"true": "1", "false": "0"}.get(value.lower(), value)
        return value.isascii() and value.isdigit() and len(value) < _DIGITS and self.least <= int(value) <= self.most

    def __str__(self) -> str:
        if self.words:
            return "write " + " or ".join(sorted(self.words))
        return f"it is from {self.least} to {self.most}" if self.most >= 0 else "write up to 64 plain characters"


_SWITCH = Bound(0, 1)
_TEXTUAL = Bound()
# Limits can only be tightened: the most is what the server sets for everyone.
LIMITS: Mapping[str, int] = {
    "max_execution_time": 60,
    "max_memory_usage": 1 << 30,
    "max_result_rows": 1_000_000,
    "max_result_bytes": 256 << 20,
    # In rows: the fewer, the sooner a statement that is to end does.
    "max_block_size": 8_192,
}
SETTINGS: Mapping[str, Bound] = {
    **{name: Bound(1, most) for name, most in LIMITS.items()},
    "result_overflow_mode": Bound(words=frozenset({"throw", "break"})),
    "max_threads": Bound(1, 4),
    "limit": Bound(0, 1 << 62),
    "offset": Bound(0, 1 << 62),
    "extremes": _SWITCH,
    "final": _SWITCH,
    "join_use_nulls": _SWITCH,
    "aggregate_functions_null_for_empty": _SWITCH,
    "prefer_column_name_to_alias": _SWITCH,
    "readonly": Bound(1, 2),
    "cast_string_to_dynamic_use_inference": _SWITCH,
    "date_time_input_format": Bound(words=frozenset({"basic", "best_effort", "best_effort_us"})),
    "date_time_output_format": Bound(words=frozenset({"simple", "iso", "unix_timestamp"})),
    "session_timezone": _TEXTUAL,
    "bool_true_representation": _TEXTUAL,
    "bool_false_representation": _TEXTUAL,
    "format_csv_delimiter": _TEXTUAL,
    "format_csv_null_representation": _TEXTUAL,
    "format_tsv_null_representation": _TEXTUAL,
    "http_write_exception_in_output_format": Bound(0, 0),
    "compress": Bound(0, 0),
    "decompress": Bound(0, 0),
}
# Every setting whose name begins so says only how values are written; `output_format_schema` would write a file.
FORMAT_FAMILIES = tuple(f"output_format_{family}_" for family in _FAMILIES.split())
# Accepted and without effect: readers are always readonly = 1, never compress blocks, and end with their client.
WITHOUT_EFFECT = SPOKEN | {"readonly", "compress", "decompress", "http_write_exception_in_output_format"}

_SIZES = """
total_rows total_bytes total_bytes_uncompressed parts active_parts total_marks lifetime_rows lifetime_bytes
"""
_NO_SIZES = ", ".join(f"toNullable(toUInt64(0)) AS {name}" for name in _SIZES.split())
_COLUMN_SIZES = "data_compressed_bytes data_uncompressed_bytes marks_bytes"
_NO_COLUMN_SIZES = ", ".join(f"toUInt64(0) AS {name}" for name in _COLUMN_SIZES.split())
_SHOWN_SETTINGS = ", ".join(f"'{name}'" for name in sorted({*SETTINGS, *SPOKEN}))
_SHOWN_FAMILIES = " OR ".join(f"startsWith(name, '{family}')" for family in FORMAT_FAMILIES)
# What each view of a table of `system` shows as nothing, for it tells of paths and sizes, and which rows it has.
_SHOWN: Mapping[str, tuple[str, str]] = {
    "tables": (
        f"CAST([], 'Array(String)') AS data_paths, '' AS metadata_path, {_NO_SIZES}",
        _OURS,
    ),
    "columns": (
        f"{_NO_COLUMN_SIZES}, '' AS statistics",
        _OURS,
    ),
    "databases": ("'' AS data_path, '' AS metadata_path, '' AS engine_full", "name = currentDatabase()"),
    "settings": ("toUInt8(0) AS readonly", f"name IN ({_SHOWN_SETTINGS}) OR {_SHOWN_FAMILIES}"),
}
VIEW_SQL: Mapping[str, str] = {
    table: f"SELECT * REPLACE ({hidden}) FROM system.{table} WHERE {rows}"  # noqa: S608 all of it is written above
    for table, (hidden, rows) in _SHOWN.items()
}
# The rows of each table of `system` that anyone may see, should a statement reach it past the gate.
SYSTEM_ROWS: Mapping[str, str] = {
    **{table: rows for table, (_, rows) in _SHOWN.items() if table != "settings"},
    **dict.fromkeys({"settings", *SYSTEM_TABLES}, "1"),
}
