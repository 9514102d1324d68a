"""Bundles: what is read, how it is named, and what is refused with file and line."""

from pathlib import Path

import pytest

from policy import bundle
from policy.bundle import FORBIDDEN_BUILTINS, load
from policy.port import BundleError


def test_tables_are_rooted_at_their_folder(write_bundle) -> None:
    root = write_bundle({"bursar/data.yaml": "limit: [1, 2]\n"})
    assert load(root).data == {"bursar": {"limit": [1, 2], "admission": {"priority": 3}}}


def test_revision_follows_content_and_nothing_else(write_bundle) -> None:
    first = load(write_bundle()).revision
    assert first.startswith("sha256:")
    assert len(first) == len("sha256:") + 64  # whole: two persons agree on a bundle by it
    assert load(write_bundle()).revision == first
    assert load(write_bundle({"notes.txt": "x", ".hidden/a.rego": "nonsense"})).revision == first
    assert load(write_bundle({"bursar/admission/admission_test.rego": None})).revision == first
    assert load(write_bundle({"bursar/admission/data.json": '{"priority": 4}'})).revision != first


@pytest.mark.parametrize("builtin", sorted(FORBIDDEN_BUILTINS))
def test_every_builtin_that_is_not_deterministic_is_refused_with_its_line(write_bundle, builtin: str) -> None:
    root = write_bundle({"bursar/other.rego": f"package bursar.other\n\nx := {builtin}(1)\n"})
    with pytest.raises(BundleError) as caught:
        load(root)
    assert (caught.value.file, caught.value.line) == ("bursar/other.rego", 3)
    assert builtin in str(caught.value)


@pytest.mark.parametrize(
    "call",
    ['http["send"]({})', "http[`send`]({})", "http . send({})", 'http["\\u0073end"]({})', "count(http.send)"],
)
def test_a_forbidden_builtin_is_refused_however_it_is_spelt(write_bundle, call: str) -> None:
    with pytest.raises(BundleError, match=r"http\.send is not deterministic"):
        load(write_bundle({"bursar/other.rego": f"package bursar.other\nx := {call}\n"}))


def test_a_call_cannot_hide_in_a_template_string(write_bundle) -> None:
    with pytest.raises(BundleError, match="template strings"):
        load(write_bundle({"bursar/other.rego": 'package bursar.other\nx := $"{http.send({})}"\n'}))


def test_a_forbidden_name_in_a_comment_or_string_is_no_call(write_bundle) -> None:
    text = 'package bursar.other\n# http.send\nx := "http.send(" # time.now_ns\ny := `rand.intn`\n'
    assert len(load(write_bundle({"bursar/other.rego": text})).modules) == 2


@pytest.mark.parametrize(
    ("file", "text", "line", "message"),
    [
        ("bursar/admission/data.json", '{"a": 1,\n"b"}', 2, "expected"),
        ("bursar/admission/data.json", "[]", 1, "must be an object"),
        ("bursar/data.yaml", "a: [1\nb: 2\n", 2, "expected"),
        ("bursar/data.yaml", "a: &x [1]\nb: *x\n", 2, "aliases"),
        ("bursar/data.yaml", "admission: {priority: 9}\n", 0, "another file"),
        ("bursar/data.yaml", "a: 2026-01-01\nb: !!set {x}\n", 0, "JSON"),
    ],
)
def test_a_bad_table_is_refused(write_bundle, file: str, text: str, line: int, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        load(write_bundle({file: text}))
    assert caught.value.line == line


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        load(tmp_path / "none")
    with pytest.raises(BundleError, match=r"no \.rego file"):
        load(tmp_path)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(write_bundle) -> None:
    root = write_bundle()
    (root / "bad.rego").write_bytes(b'package a\n\nx := "\xff"\n')
    with pytest.raises(BundleError, match="UTF-8") as caught:
        load(root)
    assert caught.value.line == 3


def test_a_bundle_is_bounded_in_bytes_and_files(write_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_bundle()
    monkeypatch.setattr(bundle, "BUNDLE_BYTES_MAX", 100)
    with pytest.raises(BundleError, match="larger than 100 bytes"):
        load(root)
    monkeypatch.setattr(bundle, "FILES_MAX", 2)
    with pytest.raises(BundleError, match="more than 2 files"):
        load(root)


def test_a_mounted_volume_serves_as_the_folder_it_is_made_of(write_bundle, tmp_path: Path) -> None:
    root = write_bundle()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    root.rename(mounted / "..2026_02_28")
    (mounted / "..data").symlink_to("..2026_02_28")
    (mounted / "bursar").symlink_to("..data/bursar")
    assert load(mounted).revision == load(mounted / "..data").revision


def test_a_folder_that_is_linked_into_itself_is_refused(write_bundle) -> None:
    root = write_bundle()
    (root / "again").symlink_to(".")
    with pytest.raises(BundleError, match="a link to a folder that the bundle has already"):
        load(root)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.json", '{"a":' * 400 + "1" + "}" * 400),
        ("data.yaml", "".join(f"{' ' * depth}a:\n" for depth in range(600))),
    ],
)
def test_a_table_without_end_is_refused_in_a_line(write_bundle, file: str, text: str) -> None:
    with pytest.raises(BundleError) as raised:
        load(write_bundle({f"deep/{file}": text}))
    assert raised.value.file == f"deep/{file}"
    assert "\n" not in str(raised.value)
