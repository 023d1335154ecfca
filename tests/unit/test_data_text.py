"""Reading text: what ends a line, what is refused, and where errors point."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.data.text import check_aligned, count_lines, read_chunks, read_lines, read_sentences
from hpcasync.errors import UserError


def file(directory: Path, name: str, content: bytes) -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    content = "one\u2028two\x0bthree\x85four\rfive\r\nsix\r\r\n\nlast"
    path = file(tmp_path, "text", content.encode())
    assert read_sentences(path) == ["one\u2028two\x0bthree\x85four\rfive", "six", "", "last"]
    assert count_lines(path) == 4


@pytest.mark.parametrize(("content", "num_lines"), [(b"", 0), (b"\n", 1), (b"a", 1), (b"a\n", 1), (b"a\nb", 2)])
def test_the_last_line_may_lack_its_end(tmp_path: Path, content: bytes, num_lines: int) -> None:
    path = file(tmp_path, "text", content)
    assert count_lines(path) == num_lines == len(list(read_lines(path)))


def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    path = file(tmp_path, "text", b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert read_sentences(path) == ["one", "\ufefftwo"]


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    packed = gzip.compress("grün\nblau\n".encode())
    assert read_sentences(file(tmp_path, "packed.gz", packed)) == ["grün", "blau"]
    assert read_sentences(file(tmp_path, "packed.txt", packed)) == ["grün", "blau"]
    assert read_sentences(file(tmp_path, "plain.gz", b"plain\n")) == ["plain"]


def test_invalid_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = file(tmp_path, "text", b"good\n" * 400_000 + b"gr\xfcn\ngood\n")  # beyond the first read
    with pytest.raises(UserError, match=r"text, line 400001: invalid UTF-8 \(byte 3 is 0xfc\)"):
        count_lines(path)


def test_cut_off_character_at_the_end_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2: invalid UTF-8"):
        count_lines(file(tmp_path, "text", "a\ngrü".encode()[:-1]))


def test_characters_may_straddle_reads(tmp_path: Path) -> None:
    path = file(tmp_path, "text", b"x" * ((1 << 20) - 1) + "ü\n".encode() * 3)
    assert count_lines(path) == 3


def test_utf16_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: invalid UTF-8 \(it looks like UTF-16\).*iconv"):
        count_lines(file(tmp_path, "text", "Grün\n".encode("utf-16")))


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"some text\n" * 1000)
    with pytest.raises(UserError, match=r"cut\.gz is a damaged or truncated gzip file"):
        count_lines(file(tmp_path, "cut.gz", packed[:-20]))
    with pytest.raises(UserError, match=r"flipped\.gz is a damaged or truncated gzip file"):
        count_lines(file(tmp_path, "flipped.gz", packed[:-6] + b"\0\0" + packed[-4:]))


def test_missing_and_irregular_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        count_lines(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a regular file"):
        count_lines(tmp_path)
    present = file(tmp_path, "present", b"a\n")
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        check_aligned(present, tmp_path / "absent")


def test_misaligned_files_are_both_counted(tmp_path: Path) -> None:
    one, other = file(tmp_path, "one", b"a\n" * 3), file(tmp_path, "other", b"b\n" * 5)
    with pytest.raises(UserError, match=r"one has 3 lines but .*other has 5"):
        check_aligned(one, other)


def test_same_file_twice(tmp_path: Path) -> None:
    one = file(tmp_path, "one", b"a\n")
    (tmp_path / "link").symlink_to(one)
    with pytest.raises(UserError, match="given as source and as target"):
        check_aligned(one, tmp_path / "link")


def test_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are empty"):
        check_aligned(file(tmp_path, "one", b""), file(tmp_path, "other", b""))


def test_files_that_change_are_noticed(tmp_path: Path) -> None:
    chunks = read_chunks(file(tmp_path, "one", b"a\n" * 5), file(tmp_path, "other", b"b\n" * 4), 3)
    assert next(chunks) == ([b"a"] * 3, [b"b"] * 3)
    with pytest.raises(UserError, match="changed while it was read"):
        next(chunks)


@settings(max_examples=50)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n\ufeff", exclude_categories=["Cs"]))))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = file(tmp_path_factory.mktemp("any"), "text", "".join(line + "\n" for line in lines).encode())
    assert read_sentences(path) == lines
    assert count_lines(path) == len(lines)
