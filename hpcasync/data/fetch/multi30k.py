"""Multi30k: 29,000 image captions and their translations.

Source: Elliott et al. 2016, "Multi30K: Multilingual English-German Image Descriptions".
"""

from pathlib import Path

from hpcasync.data.fetch.corpus import FetchedCorpus, FetchOptions
from hpcasync.data.fetch.download import download
from hpcasync.data.fetch.mirror import RemoteFile
from hpcasync.errors import UserError

_COMMIT = "a3d2e0d26b56f3846f66a952536ffed4e401d05a"
_BASE_URL = f"https://raw.githubusercontent.com/multi30k/dataset/{_COMMIT}/data/task1/raw"
_SHA256 = {
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.fr": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.fr": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
    "test_2016_flickr.en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.fr": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
}


def fetch_multi30k(directory: Path, options: FetchOptions) -> FetchedCorpus:
    """Fetch Multi30k, English to German or French, with the test set of 2016.

    Raises:
        UserError: the target language is not there, or as `download`.
    """
    target = options.target or "de"
    if target not in ("de", "fr"):
        raise UserError(f"--target {target}: Multi30k is fetched with de or fr")

    def side(split: str, language: str) -> Path:
        name = f"{split}.{language}"
        file = RemoteFile(f"{_BASE_URL}/{name}.gz", f"{name}.gz", f"sha256:{_SHA256[name]}")
        return download(file, directory, options.mirror)

    train, valid, test = ((side(split, "en"), side(split, target)) for split in ("train", "val", "test_2016_flickr"))
    return FetchedCorpus("en", target, train, valid, test, vocab_size=8000)
