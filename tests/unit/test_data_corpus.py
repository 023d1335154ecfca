"""Opening a corpus: what is refused, and with which words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.prepare import PrepareOptions, prepare
from hpcasync.data.subwords import SubwordOptions
from hpcasync.errors import UserError

LINES = ["ab ba", "ba ab ab", "b", "a b a b a b"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("corpus")
    for name in ("source", "target"):
        (directory / name).write_text("".join(line + "\n" for line in LINES))
    options = PrepareOptions(subwords=SubwordOptions(vocab_size=10, model_type="bpe"))
    prepare(directory / "source", directory / "target", directory / "prepared", options)
    return directory / "prepared"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_tokens_are_mapped_not_read(prepared: Path) -> None:
    train = PreparedCorpus.open(prepared).train
    assert isinstance(train.source_file.tokens.base, np.memmap)
    assert isinstance(train.source_file.offsets.base, np.memmap)
    assert train.source_file[1].dtype == np.dtype("<u2")
    assert train.source_file[1].base is not None
    assert train.source_file.lengths(0, len(train)).tolist() == [len(train.source_file[i]) for i in range(len(train))]
    assert train.source_file.lengths(1, 3).tolist() == train.source_file.lengths(0, len(train)).tolist()[1:3]
    with pytest.raises(ValueError, match="read-only"):
        train.source_file[1][0] = 3


def test_digest_follows_the_content(prepared: Path, copy: Path) -> None:
    assert PreparedCorpus.open(copy).digest == PreparedCorpus.open(prepared).digest
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source_language"] = "en"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert PreparedCorpus.open(copy).digest != PreparedCorpus.open(prepared).digest


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no prepared corpus .*absent; make it with `hpcasync data prepare`"):
        PreparedCorpus.open(tmp_path / "absent")


def test_directory_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no prepared corpus \(no manifest.json\)"):
        PreparedCorpus.open(tmp_path)


def test_cut_off_file_is_named_with_both_sizes(copy: Path) -> None:
    offsets = copy / "train.source.offsets"
    offsets.write_bytes(offsets.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"train\.source\.offsets has 37 bytes but the manifest says 40"):
        PreparedCorpus.open(copy)


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "target.spm").unlink()
    with pytest.raises(UserError, match=r"target\.spm is missing"):
        PreparedCorpus.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": 2}, "version"), ({"format": "other"}, "format"), ({"pairs": None}, "pairs"), ({"new": 1}, "new")],
)
def test_other_manifests_are_refused(copy: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(
        UserError, match=rf"no manifest that this release reads \({message}: .*prepare the corpus again"
    ):
        PreparedCorpus.open(copy)


def test_manifest_whose_counts_disagree_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["pairs"]["kept"] -= 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"the record of train\.source\.offsets disagrees with the counts"):
        PreparedCorpus.open(copy)


def test_manifest_that_is_no_json(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": "hpcasync-cor')
    with pytest.raises(UserError, match=r"no manifest that this release reads \(the file: Invalid JSON"):
        PreparedCorpus.open(copy)


def test_paths_cannot_leave_the_directory(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": "0" * 64}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"no manifest that this release reads"):
        PreparedCorpus.open(copy)
