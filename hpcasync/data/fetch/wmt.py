"""The news translation tasks of WMT, from the data sets that mtdata's index knows and the test sets of sacreBLEU."""

import gzip
import logging
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO, Any

from sacrebleu.dataset import DATASETS

from hpcasync.command_line import pip_install
from hpcasync.data.fetch.corpus import Fetch, FetchedCorpus, FetchOptions, Pair, in_place_when_complete
from hpcasync.data.fetch.download import download
from hpcasync.data.fetch.mirror import RemoteFile
from hpcasync.data.progress import progress, say
from hpcasync.errors import UserError

_ARCHIVES_NAME = "downloads"

# Of the files of mtdata's index that somebody has published a digest of.
# Source: the checksums that TensorFlow Datasets keeps for its WMT corpora.
_SHA256 = {
    "training-parallel-europarl-v7.tgz": "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
    "training-parallel-commoncrawl.tgz": "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
    "training-parallel-nc-v13.tgz": "17992b7e919cfb754c60f4e754148bc23b80706ad0ed7b34150831a554b40c91",
    "europarl-v9.fi-en.tsv.gz": "6bd65e497db4cc783b08f8be62aaa4b85c67c1e260a09e785cef77ff9e4488e8",
    "rapid2016.en-fi.tmx.zip": "2a3ad1343cded48241b8ed38db9a963d89f924eb46429f9c3eace56b1f56ba4e",
    "wikititles-v1.fi-en.tsv.gz": "01906ddfc88b20039939e69652c5ba9b335c4671be5131c00d76ec0420760fad",
    "wikititles-v1.ru-en.tsv.gz": "5da4f340b3ac684dca016bb5fc0730b00fc9808f0a4891a6d745aaa686a600e4",
    "en-fi.bicleaner07.tmx.gz": "d7741612d6d82b9479819b1acc1149343c5bed7d4953f982e8889f2156a8bf17",
}


@dataclass(frozen=True)
class _Task:
    """One task: the identifiers of its training sets in mtdata, of its held-out sets in sacreBLEU."""

    target: str
    train: tuple[str, ...]
    valid: str
    test: str


_TASKS = {
    "wmt17-en-de": _Task(
        "de",
        (
            "Statmt-europarl_wmt13-7-deu-eng",
            "Statmt-commoncrawl_wmt13-1-deu-eng",
            "Statmt-news_commentary_wmt18-13-deu-eng",
            "Tilde-rapid-2016-deu-eng",
        ),
        valid="wmt16",
        test="wmt17",
    ),
    "wmt18-en-fi": _Task(
        "fi",
        (
            "Statmt-europarl-9-fin-eng",
            "Tilde-rapid-2016-eng-fin",
            "Statmt-wiki_titles-1-fin-eng",
            "ParaCrawl-paracrawl-3-eng-fin",
        ),
        valid="wmt17",
        test="wmt18",
    ),
    "wmt18-en-ru": _Task(
        "ru",
        (
            "Statmt-commoncrawl_wmt13-1-rus-eng",
            "Statmt-news_commentary_wmt18-13-rus-eng",
            "Statmt-wiki_titles-1-rus-eng",
            "Statmt-yandex-wmt22-eng-rus",
            "ParaCrawl-paracrawl-1_bonus-eng-rus",
            "OPUS-unpc-v1.0-eng-rus",
        ),
        valid="wmt17",
        test="wmt18",
    ),
}


def fetch_tasks() -> dict[str, Fetch]:
    """Names of the tasks and what fetches each."""
    return {name: partial(_fetch_task, task) for name, task in _TASKS.items()}


def _fetch_task(task: _Task, directory: Path, options: FetchOptions) -> FetchedCorpus:
    if options.target not in (None, task.target):
        raise UserError(f"--target {options.target}: this task's target language is {task.target}")
    archives = directory / _ARCHIVES_NAME
    entries = [_entry(identifier) for identifier in task.train]
    held_out = {"valid": task.valid, "test": task.test}
    # Everything is fetched before anything is unpacked, small files first: what is missing shows early.
    tests = {name: download(_test_file(which), archives, options.mirror) for name, which in held_out.items()}
    paths = [download(_entry_file(entry), archives, options.mirror) for entry in entries]
    with in_place_when_complete(directory) as partial_directory:
        for name, which in held_out.items():
            _write_test(tests[name], which, task.target, _pair(partial_directory, name, task.target))
        _write_train(zip(entries, paths, strict=True), archives, _pair(partial_directory, "train", task.target))
    train, valid, test = (_pair(directory, name, task.target) for name in ("train", "valid", "test"))
    return FetchedCorpus("en", task.target, train, valid, test, vocab_size=32_000)


def _pair(directory: Path, name: str, target: str) -> Pair:
    return directory / f"{name}.en", directory / f"{name}.{target}"


def _entry(identifier: str) -> Any:
    """The entry of mtdata's index."""
    import mtdata

    logging.getLogger().setLevel(logging.WARNING)  # it has made the whole program talk
    if not mtdata.cached_index_file.exists():
        say("mtdata makes its index, once; this takes a minute ...")
    from mtdata.entry import DatasetId
    from mtdata.index import INDEX

    try:
        return INDEX[DatasetId.parse(identifier)]
    except KeyError as error:
        raise UserError(
            f"this release of mtdata does not know {identifier}: {pip_install('--upgrade', 'mtdata')}"
        ) from error


def _entry_file(entry: Any) -> RemoteFile:
    name = entry.url.rsplit("/", 1)[-1]
    if name in ("main.zip", "en-ru.txt.zip"):  # says nothing of what it is
        name = f"{entry.did.name}-{name}"
    digest = f"sha256:{_SHA256[name]}" if name in _SHA256 else None
    return RemoteFile(entry.url, name, digest)


def _test_file(which: str) -> RemoteFile:
    dataset = DATASETS[which]
    assert dataset.data and dataset.md5
    return RemoteFile(dataset.data[0], f"{which}-test.tgz", f"md5:{dataset.md5[0]}")


def _write_test(archive: Path, which: str, target: str, pair: Pair) -> None:
    members = DATASETS[which].langpairs[f"en-{target}"]
    assert members is not None
    with tarfile.open(archive) as container:
        for member, path in zip(members, pair, strict=True):
            content = container.extractfile(member)
            assert content is not None
            path.write_text("".join(segment + "\n" for segment in sgm_segments(content.read().decode())))


def sgm_segments(content: str) -> list[str]:
    """The segments of WMT's not quite valid SGML, as sacreBLEU reads them."""
    segments = (line for line in content.split("\n") if line.startswith("<seg "))
    return [_one_line(re.sub(r"<seg.*?>(.*)</seg>.*?", r"\1", segment)) for segment in segments]


def _write_train(sources: Iterator[tuple[Any, Path]], archives: Path, pair: Pair) -> None:
    with pair[0].open("w", encoding="utf-8") as english, pair[1].open("w", encoding="utf-8") as other:
        for entry, path in sources:
            num_pairs = num_empty = 0
            with progress(f"Reading {entry.did}", None) as advance:
                for source, target in _read_or_explain(entry, path, archives):
                    if source and target:
                        english.write(source + "\n")
                        other.write(target + "\n")
                        num_pairs += 1
                    else:
                        num_empty += 1
                    advance(1)
            say(f"{entry.did}: {num_pairs:,} pairs, {num_empty:,} with an empty side left out")


def _read_or_explain(entry: Any, path: Path, archives: Path) -> Iterator[tuple[str, str]]:
    try:
        yield from _read(entry, path, archives)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UserError(f"{path} is damaged ({reason}); remove it and run the command again") from error


def _read(entry: Any, path: Path, archives: Path) -> Iterator[tuple[str, str]]:
    """English and other side of the pairs of a data set, each one line."""
    from mtdata.parser import Parser

    is_swapped = entry.did.langs[0].lang != "eng"
    members = list(_unpack(entry, path, archives)) if entry.is_archive else []
    extension = entry.in_ext or entry.ext
    # Two text files are the two sides; of files that hold both sides, each is read by itself.
    inputs = [members] if extension == "txt" else [[member] for member in members or [path]]
    try:
        for paths in inputs:
            for segments in Parser(paths, ext=extension, ent=entry).read_segs(show_pbar=False):
                first, second = (_one_line(segment or "") for segment in segments[:2])
                yield (second, first) if is_swapped else (first, second)
    finally:
        for member in members:
            member.unlink()


def _unpack(entry: Any, path: Path, archives: Path) -> Iterator[Path]:
    """The members of an archive that a data set consists of, unpacked, in the order of the entry."""
    is_zip = zipfile.is_zipfile(path)
    with zipfile.ZipFile(path) if is_zip else tarfile.open(path) as container:
        names = container.namelist() if isinstance(container, zipfile.ZipFile) else container.getnames()
        for pattern in entry.in_paths:
            matching = [name for name in names if fnmatch(name, pattern)]
            if len(matching) != 1:
                raise UserError(f"{path}: {len(matching)} files match {pattern}, not one; is it the right archive?")
            content: IO[bytes] | None
            if isinstance(container, zipfile.ZipFile):
                content = container.open(matching[0])
            else:
                content = container.extractfile(matching[0])
            assert content is not None
            member = archives / f"{entry.did}.{PurePosixPath(matching[0]).name}"
            with content, member.open("wb") as output:
                copyfileobj(content, output, 1 << 20)
            yield member


def _one_line(text: str) -> str:
    return " ".join(text.split())
