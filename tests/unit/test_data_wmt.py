"""The WMT tasks, from small archives laid out as the real ones (slow: mtdata's index alone takes many seconds)."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from sacrebleu.dataset import DATASETS

from hpcasync.cli.data import data
from hpcasync.data.digests import file_digest
from hpcasync.data.fetch import wmt
from hpcasync.data.text import read_sentences
from hpcasync.errors import UserError

pytest.importorskip("mtdata", reason="the extra [wmt] is not installed")
pytestmark = pytest.mark.slow
FI_TMX = """<?xml version="1.0"?><tmx version="1.4"><body>
<tu><tuv xml:lang="en"><seg>rapid one</seg></tuv><tuv xml:lang="fi"><seg>nopea yksi</seg></tuv></tu>
<tu><tuv xml:lang="fi"><seg>nopea kaksi</seg></tuv><tuv xml:lang="en"><seg>rapid
two</seg></tuv></tu></body></tmx>"""


def make_tar(path: Path, members: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as container:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            container.addfile(info, io.BytesIO(text.encode()))


def sgm(*segments: str) -> str:
    lines = [f'<seg id="{number}">{segment}</seg>' for number, segment in enumerate(segments, start=1)]
    return "\n".join(['<srcset setid="x">', '<doc docid="d">', "<p>", *lines, "</p>", "</doc>", "</srcset>", ""])


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files under the real names; their digests take the place of the published ones."""
    directory = tmp_path / "mirror"
    directory.mkdir()
    for which, year in (("wmt16", "2016"), ("wmt17", "2017"), ("wmt18", "2018")):
        members = {}
        for pair, code in (("de", "ende"), ("fi", "enfi"), ("ru", "enru")):
            members[f"test/newstest{year}-{code}-src.en.sgm"] = sgm(f"source  {year}", "A &amp; B")
            members[f"test/newstest{year}-{code}-ref.{pair}.sgm"] = sgm(f"target {pair} {year}", "C &amp; D")
        make_tar(directory / f"{which}-test.tgz", members)
        monkeypatch.setattr(DATASETS[which], "md5", [file_digest(directory / f"{which}-test.tgz", "md5")])
    (directory / "europarl-v9.fi-en.tsv.gz").write_bytes(gzip.compress(b"euro yksi\teuro one\n\teuro two\n"))
    with zipfile.ZipFile(directory / "rapid2016.en-fi.tmx.zip", "w") as container:
        container.writestr("some/rapid.tmx", FI_TMX)
    (directory / "wikititles-v1.fi-en.tsv.gz").write_bytes(gzip.compress("otsikko\ttitle\u2028line\n".encode()))
    paracrawl = FI_TMX.replace("rapid", "crawl").replace("nopea", "ryömi").encode()
    (directory / "en-fi.bicleaner07.tmx.gz").write_bytes(gzip.compress(paracrawl))
    europarl, crawl = "training/europarl-v7.de-en", "commoncrawl.de-en"
    make_tar(
        directory / "training-parallel-europarl-v7.tgz",
        {f"{europarl}.de": "eins\nzwei\n", f"{europarl}.en": "one\ntwo\n"},
    )
    crawled = {f"{crawl}.de": "drei\n", f"{crawl}.en": "three\n", "commoncrawl.cs-en.en": "x\n"}
    make_tar(directory / "training-parallel-commoncrawl.tgz", crawled)
    news = "training-parallel-nc-v13/news-commentary-v13.de-en"
    make_tar(directory / "training-parallel-nc-v13.tgz", {f"{news}.de": "vier\n", f"{news}.en": "four\n"})
    with zipfile.ZipFile(directory / "rapid2016.de-en.tmx.zip", "w") as container:
        container.writestr("rapid.tmx", FI_TMX.replace('"fi"', '"de"').replace("nopea", "schnell"))
    for path in directory.iterdir():
        if path.name in wmt._SHA256:
            monkeypatch.setitem(wmt._SHA256, path.name, file_digest(path))
    return directory


def fetch(name: str, directory: Path, mirror: Path) -> str:
    result = CliRunner().invoke(data, ["fetch", name, str(directory), "--mirror", str(mirror)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_every_data_set_is_in_the_index() -> None:
    for task in wmt._TASKS.values():
        for identifier in task.train:
            assert wmt._entry_file(wmt._entry(identifier)).name
        for which in (task.valid, task.test):
            langpairs = DATASETS[which].langpairs
            assert langpairs is not None and f"en-{task.target}" in langpairs


def test_names_of_a_task_differ_and_digests_are_used() -> None:
    for task in wmt._TASKS.values():
        files = [wmt._entry_file(wmt._entry(identifier)) for identifier in task.train]
        assert len({file.name for file in files}) == len(files)
    digests = {wmt._entry_file(wmt._entry(identifier)).digest for identifier in wmt._TASKS["wmt18-en-fi"].train}
    assert None not in digests


def test_finnish_from_tables_and_memories(tmp_path: Path, mirror: Path) -> None:
    output = fetch("wmt18-en-fi", tmp_path / "out", mirror)
    assert read_sentences(tmp_path / "out/train.en") == [
        "euro one", "rapid one", "rapid two", "title line", "crawl one", "crawl two"]  # fmt: skip
    assert read_sentences(tmp_path / "out/train.fi") == [
        "euro yksi", "nopea yksi", "nopea kaksi", "otsikko", "ryömi yksi", "ryömi kaksi"]  # fmt: skip
    assert read_sentences(tmp_path / "out/valid.en") == ["source 2017", "A &amp; B"]
    assert read_sentences(tmp_path / "out/test.fi") == ["target fi 2018", "C &amp; D"]
    assert "--vocab-size 32000" in output.splitlines()[-1]
    before = (tmp_path / "out/train.fi").stat().st_mtime_ns
    again = fetch("wmt18-en-fi", tmp_path / "out", mirror)
    assert "europarl-v9.fi-en.tsv.gz is there already" in again
    assert again.splitlines()[-1] == output.splitlines()[-1]
    assert (tmp_path / "out/train.fi").stat().st_mtime_ns != before  # made again, of the same content
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "downloads", "train.en", "train.fi", "valid.en", "valid.fi", "test.en", "test.fi"}  # fmt: skip


def test_german_from_archives(tmp_path: Path, mirror: Path) -> None:
    fetch("wmt17-en-de", tmp_path / "out", mirror)
    assert read_sentences(tmp_path / "out/train.en") == ["one", "two", "three", "four", "rapid one", "rapid two"]
    assert read_sentences(tmp_path / "out/train.de")[:4] == ["eins", "zwei", "drei", "vier"]
    kept = {path.name for path in (tmp_path / "out/downloads").iterdir()}
    assert "rapid2016.de-en.tmx.zip.sha256" in kept  # nobody has published its digest
    assert not any("deu-eng" in name for name in kept)  # what was unpacked is gone


def test_another_target_language_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(data, ["fetch", "wmt18-en-fi", str(tmp_path), "--target", "de"])
    assert "--target de: this task's target language is fi" in str(result.exception)


def test_a_missing_file_of_the_mirror_is_named(tmp_path: Path, mirror: Path) -> None:
    (mirror / "wikititles-v1.fi-en.tsv.gz").unlink()
    with pytest.raises(
        UserError, match=r"has no file wikititles-v1\.fi-en\.tsv\.gz \(upstream: http://data\.statmt\.org"
    ):
        fetch("wmt18-en-fi", tmp_path / "out", mirror)


def test_a_damaged_archive_is_named(tmp_path: Path, mirror: Path) -> None:
    (mirror / "rapid2016.de-en.tmx.zip").write_bytes(b"PK no zip")
    with pytest.raises(
        UserError, match=r"rapid2016\.de-en\.tmx\.zip is damaged .* remove it and run the command again"
    ):
        fetch("wmt17-en-de", tmp_path / "out", mirror)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"downloads"}


def test_segments_are_read_as_sacrebleu_reads_them(tmp_path: Path) -> None:
    content = sgm("one  two", " &lt;three&gt; ", "") + '<hl>\n<seg id="9">four</seg> </hl>\n'
    (tmp_path / "in.sgm").write_text(content)
    DATASETS["wmt17"]._convert_format(str(tmp_path / "in.sgm"), str(tmp_path / "out"))  # type: ignore[attr-defined]
    assert wmt.sgm_segments(content) == read_sentences(tmp_path / "out")
