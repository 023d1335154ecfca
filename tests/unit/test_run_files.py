"""Files of a run: complete and on disk, or not there; and which are kept."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hpcasync.complete_files import remove_partial, write_text_atomically
from hpcasync.data.digests import file_digest
from hpcasync.errors import UserError
from hpcasync.runs.files import SavedSnapshot, read_state, write_snapshot
from hpcasync.runs.retention import superseded


def test_damaged_state(tmp_path: Path) -> None:
    for content, expected in (("{", "cannot read .*state.json"), ("[1]", "state.json holds no JSON object")):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(UserError, match=expected):
            read_state(tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*state.json"):
        read_state(tmp_path)


def test_snapshots(tmp_path: Path) -> None:
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}
    for attempt in (1, 2):
        assert write_snapshot(tmp_path / "u00000001", arrays, {"attempt": attempt}) == SavedSnapshot("u00000001")
    assert {path.name for path in tmp_path.iterdir()} == {"u00000001"}
    state = read_state(tmp_path / "u00000001")
    assert state["attempt"] == 2
    assert state["files"]["parameters.safetensors"]["sha256"] == file_digest(
        tmp_path / "u00000001" / "parameters.safetensors"
    )
    with safe_open(tmp_path / "u00000001" / "parameters.safetensors", framework="np") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        write_text_atomically(tmp_path / "last", text)
        assert (tmp_path / "last").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_what_cannot_be_written_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saved = write_snapshot(tmp_path / "file" / "u00000001", {}, {})
    assert saved == SavedSnapshot("u00000001", "Not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "u00000001", {"a": np.ones(1, np.float32)}, {})
    (tmp_path / "u00000002.partial").mkdir()
    (tmp_path / "u00000002.partial" / "state.json").write_text("{}")
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["u00000001"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "protected", "expected"),
    [
        (0, 0, [], []),
        (2, 0, [], [1, 2, 3]),
        (2, 2, [], [1, 3]),
        (1, 0, [2], [1, 3, 4]),
        (9, 0, [], []),
        (1, 3, [1, 99], [2, 4]),
    ],
)
def test_retention(keep: int, keep_every: int, protected: list[int], expected: list[int]) -> None:
    def names(numbers: list[int]) -> list[str]:
        return [f"u{number:08d}" for number in numbers]

    assert superseded(names([1, 2, 3, 4, 5]), keep=keep, keep_every=keep_every, protected=names(protected)) == names(
        expected
    )
