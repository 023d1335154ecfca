"""Writes beside the training."""

import threading

import pytest

from hpcasync.runs.background_writer import BackgroundWriter


def test_writes_come_in_order_and_errors_come_back() -> None:
    writer: BackgroundWriter[str] = BackgroundWriter()
    may_go_on = threading.Event()
    written: list[str] = []

    def write(name: str) -> str:
        assert may_go_on.wait(60)
        written.append(name)
        return name

    writer.submit(lambda: write("a"))
    writer.submit(lambda: write("b"))
    assert writer.poll() == [] and written == []
    may_go_on.set()
    assert writer.wait() == ["a", "b"] and written == ["a", "b"]
    assert writer.poll() == [] and writer.wait() == []

    def fail() -> str:
        raise ZeroDivisionError("a mistake in the program")

    writer.submit(fail)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        writer.wait()
