"""Downloads, against a server on this machine: resumption, digests, refusals, mirrors."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpcasync.cli.data import data
from hpcasync.data.fetch.download import download
from hpcasync.data.fetch.mirror import Mirror, RemoteFile
from hpcasync.data.fetch.transfer import receive
from hpcasync.errors import UserError

CONTENT = hashlib.shake_128(b"content").digest(300_000)
NO_WAIT = (0.0, 0.0, 0.0)


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    ranges: bool = True
    version: str = '"1"'
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    break_after: list[int] = field(default_factory=list)  # bytes sent before the connection is cut, one a request
    asked: list[str | None] = field(default_factory=list)  # Range of each request


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        asked_range = self.headers.get("Range")
        self.behaviour.asked.append(asked_range)
        if self.behaviour.statuses:
            self.send_error(self.behaviour.statuses.pop(0))
            return
        content, start = self.behaviour.content, 0
        unchanged = self.headers.get("If-Range", self.behaviour.version) == self.behaviour.version
        if asked_range and self.behaviour.ranges and unchanged:
            start = int(asked_range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.behaviour.version)
        self.end_headers()
        cut = self.behaviour.break_after.pop(0) if self.behaviour.break_after else len(content)
        self.wfile.write(content[start : start + cut])

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def base_url(behaviour: Behaviour) -> Iterator[str]:
    handler = type("BoundHandler", (Handler,), {"behaviour": behaviour})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def remote(base_url: str, digest: str | None = None) -> RemoteFile:
    return RemoteFile(f"{base_url}/some/where/file.bin", "file.bin", digest or sha256(CONTENT))


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_whole_file(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    path = download(remote(base_url), tmp_path / "new" / "directory", Mirror(), NO_WAIT)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"file.bin"}
    assert download(remote(base_url), path.parent, Mirror(), NO_WAIT) == path
    assert behaviour.asked == [None]  # the second time nothing is asked


def test_other_digests(tmp_path: Path, base_url: str) -> None:
    file = remote(base_url, f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    assert download(file, tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT


def test_broken_connections_are_resumed(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    behaviour.break_after = [100_000, 50_000, 1000, 1, 70_000]  # more than the tries in a row, but each brings bytes
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT
    assert behaviour.asked == [None, *(f"bytes={start}-" for start in (100_000, 150_000, 151_000, 151_001, 221_001))]


def test_a_later_command_goes_on(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    behaviour.break_after = [120_000, 0, 0, 0]
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1 .*--mirror DIR\|URL \(120,000 bytes are kept: run the command ag"
    ):
        download(remote(base_url), tmp_path, Mirror(), NO_WAIT)
    assert not (tmp_path / "file.bin").exists()
    behaviour.asked.clear()
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT
    assert behaviour.asked == ["bytes=120000-"]
    assert names(tmp_path) == {"file.bin"}


def test_a_server_without_ranges_sends_all_again(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    behaviour.ranges, behaviour.break_after = False, [100_000]
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=100000-"]


def test_a_file_that_changed_between_is_fetched_anew(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    (tmp_path / "part").mkdir()
    part = tmp_path / "part" / "file.bin.part"
    behaviour.content, behaviour.version, behaviour.break_after = b"old" * 1000, '"0"', [1000, 0]
    with pytest.raises(UserError):
        receive(f"{base_url}/file.bin", part, (0.0,))
    behaviour.content, behaviour.version, behaviour.break_after = CONTENT, '"1"', []
    receive(f"{base_url}/file.bin", part, NO_WAIT)
    assert part.read_bytes() == CONTENT


def test_a_stale_beginning_is_replaced_when_the_digest_differs(
    tmp_path: Path, base_url: str, behaviour: Behaviour
) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 5000)  # of no known version: the range is answered
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT
    assert behaviour.asked == ["bytes=5000-", None]


def test_a_complete_part_is_recognised(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT
    assert behaviour.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_too_long_is_replaced(tmp_path: Path, base_url: str) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT


def test_a_wrong_digest_leaves_nothing(tmp_path: Path, base_url: str) -> None:
    file = remote(base_url, sha256(b"other"))
    with pytest.raises(UserError, match=rf"its SHA256 is {sha256(CONTENT)[7:]}, published is .*--mirror"):
        download(file, tmp_path, Mirror(), NO_WAIT)
    assert names(tmp_path) == set()


def test_refusals_are_not_tried_again(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    behaviour.statuses = [404]
    with pytest.raises(UserError, match=r"/some/where/file\.bin: 127\.0\.0\.1 answers 404 Not Found; give --mirror"):
        download(remote(base_url), tmp_path, Mirror(), NO_WAIT)
    assert behaviour.asked == [None]


def test_overload_is_waited_for(tmp_path: Path, base_url: str, behaviour: Behaviour) -> None:
    behaviour.statuses = [503, 429, 500]
    assert download(remote(base_url), tmp_path, Mirror(), NO_WAIT).read_bytes() == CONTENT
    behaviour.statuses = [503] * 10
    with pytest.raises(UserError, match="answers 503 Service Unavailable"):
        receive(base_url, tmp_path / "other.part", NO_WAIT)
    assert len(behaviour.asked) == 4 + 4


def test_an_unreachable_host_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RemoteFile("http://127.0.0.1:9/file.bin", "file.bin", None)  # nothing listens there
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1 cannot be reached \(is this machine offline\?\); give --mirror"
    ) as e:
        download(file, tmp_path, Mirror())
    assert "\n" not in str(e.value)
    assert capsys.readouterr().err == ""


def test_without_a_published_digest_the_first_one_is_noted(tmp_path: Path, base_url: str) -> None:
    file = RemoteFile(f"{base_url}/file.bin", "file.bin", None)
    path = download(file, tmp_path, Mirror(), NO_WAIT)
    assert (tmp_path / "file.bin.sha256").read_text() == f"{sha256(CONTENT)[7:]}  file.bin\n"
    download(file, tmp_path, Mirror(), NO_WAIT)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"file\.bin is there but is not the file expected"):
        download(file, tmp_path, Mirror(), NO_WAIT)


def test_another_file_in_place_is_kept(tmp_path: Path, base_url: str) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"is there but is not the file expected .*remove it"):
        download(remote(base_url), tmp_path, Mirror(), NO_WAIT)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_mirror_directory(tmp_path: Path) -> None:
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / "file.bin").write_bytes(CONTENT)
    file = remote("http://127.0.0.1:9")
    for text in (str(mirror), mirror.as_uri()):
        target = tmp_path / str(len(text))
        assert download(file, target, Mirror.parse(text), NO_WAIT).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"has no file absent \(upstream: http://x/absent\)"):
        download(RemoteFile("http://x/absent", "absent", None), tmp_path, Mirror.parse(str(mirror)), NO_WAIT)
    (mirror / "file.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is not the file expected: its SHA256 is"):
        download(file, tmp_path / "damaged", Mirror.parse(str(mirror)), NO_WAIT)


def test_mirror_url(tmp_path: Path, base_url: str) -> None:
    assert Mirror.parse(f"{base_url}/base/").locate(remote("http://x")) == f"{base_url}/base/file.bin"
    path = download(remote("http://127.0.0.1:9"), tmp_path, Mirror.parse(base_url), NO_WAIT)
    assert path.read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"--mirror ftp://host/ is neither a directory nor an http"):
        Mirror.parse("ftp://host/")


def test_multi30k_names_and_digests(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "train.en.gz").write_bytes(b"not the captions")
    result = CliRunner().invoke(data, ["fetch", "multi30k", str(tmp_path / "out"), "--mirror", str(mirror)])
    assert isinstance(result.exception, UserError)
    assert "published is d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f" in str(result.exception)
    result = CliRunner().invoke(data, ["fetch", "multi30k", str(tmp_path / "out"), "--target", "cs"])
    assert "--target cs: Multi30k is fetched with de or fr" in str(result.exception)
