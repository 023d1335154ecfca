"""BLEU of languages without blanks: the tokeniser goes by the target language, and is in the signature."""

import importlib.util
import json
import math
import random
from pathlib import Path

import pytest
import yaml
from bad_input import PATIENCE_SECONDS
from forked_commands import ForkedCommands

from hpcasync.data.languages import check_tokenizer, choose_tokenizer, lacks_blanks
from hpcasync.errors import UserError
from hpcasync.nmt.scoring import BleuScore, corpus_score
from hpcasync.runs.records import read_validations
from hpcasync.runs.scores import BestScore
from hpcasync.train.supervise.snapshots import blind_score

LETTERS = dict(zip("abcdefghijklmno", "天地人山水火木金土日月星风雨云", strict=True))


def pairs(number: int, seed: int) -> tuple[list[str], list[str]]:
    """Nine letters with blanks, and the same as nine characters and a full stop."""
    draw = random.Random(seed)
    sources = ["".join(draw.choice("abcdefghijklmno") for _ in range(9)) for _ in range(number)]
    return [" ".join(source) for source in sources], ["".join(LETTERS[x] for x in source) + "。" for source in sources]


def write_text(directory: Path, num_pairs: int = 500) -> None:
    for name, number, seed in (("train", num_pairs, 1), ("valid", 20, 2)):
        for side, lines in zip(("src", "tgt"), pairs(number, seed), strict=True):
            (directory / f"{name}.{side}").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("zh", "zh"), ("zh-TW", "zh"), ("zho_Hans", "zh"), ("ZH", "zh"), ("cmn", "zh"), ("ja", "ja-mecab"),
        ("jpn_Jpan", "ja-mecab"), ("ko", "ko-mecab"), ("de", "13a"), ("th", "13a"), ("", "13a"), (None, "13a"),
    ],
)  # fmt: skip
def test_the_tokenizer_of_a_language(language: str | None, tokenizer: str) -> None:
    assert choose_tokenizer("auto", language) == tokenizer
    assert choose_tokenizer("char", language) == "char"


def test_missing_packages_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"ja-mecab of BLEU needs MeCab and ipadic.*pip install 'hpcasync\[ja\]'"):
        check_tokenizer("ja-mecab")
    with pytest.raises(UserError, match="mecab_ko"):
        corpus_score("bleu", ["x"], [["x"]], "ko-mecab")


def test_text_without_blanks() -> None:
    sources, targets = pairs(20, 3)
    assert lacks_blanks(targets) and not lacks_blanks(sources) and not lacks_blanks([])
    assert not lacks_blanks(["Donaudampfschifffahrt", "ein Satz mit Worten", "noch einer, auch mit Worten"])


def test_scores_of_half_right_translations() -> None:
    _, targets = pairs(50, 4)
    hypotheses = [target[:6] + target[:3] + "。" for target in targets]
    assert corpus_score("bleu", hypotheses, [targets]).value < 1e-3
    by_characters = corpus_score("bleu", hypotheses, [targets], "zh")
    assert by_characters.value > 40 and "|tok:zh|" in by_characters.signature
    assert isinstance(by_characters, BleuScore)
    assert by_characters.brevity_penalty == 1 and by_characters.length_ratio == 1 and len(by_characters.precisions) == 4


@pytest.mark.parametrize(
    ("tokenizer", "module", "hypothesis", "reference", "matches"),
    [  # 私 は 猫 が 好き です 。 and 나 는 고양이 를 좋아한다 . with another animal; no n-gram counts as half a one
        ("ja-mecab", "MeCab", "私は猫が好きです。", "私は犬が好きです。", (6 / 7, 4 / 6, 2 / 5, 1 / 4)),
        ("ko-mecab", "mecab_ko", "나는 고양이를 좋아한다.", "나는 강아지를 좋아한다.", (5 / 6, 3 / 5, 1 / 4, 0.5 / 3)),
    ],
)
def test_words_of_japanese_and_korean(
    tmp_path: Path, commands: ForkedCommands, tokenizer: str, module: str, hypothesis: str, reference: str,
    matches: tuple[float, ...],
) -> None:  # fmt: skip
    pytest.importorskip(module, reason=f"the packages of {tokenizer} are not installed: make setup")
    (tmp_path / "hypothesis").write_text(f"{hypothesis}\n")
    (tmp_path / "reference").write_text(f"{reference}\n")
    files = ("hypothesis", "reference", "--tokenize", tokenizer, "--json")
    done = commands("evaluate", *files, cwd=tmp_path, timeout=PATIENCE_SECONDS)
    record = json.loads(done.stdout)["scores"][0]
    assert record["value"] == pytest.approx(100 * math.prod(matches) ** 0.25)
    assert f"|tok:{tokenizer}-" in record["signature"]


def test_a_score_that_cannot_tell_snapshots_apart() -> None:
    best = BestScore("bleu")
    blind = []
    for number, (bleu, loss) in enumerate([(0.0, 3.0), (0.001, 2.0), (0.0, 1.0), (0.0, 1.5), (5.0, 1.0)]):
        best.update({"name": f"u{number}", "bleu": bleu, "loss": loss, "chrf": 1.0})
        blind.append(best.is_blind)
    assert blind == [False, False, True, False, False] and best.name == "u4"


def test_only_a_hopeless_score_blames_the_tokenizer() -> None:
    scores = {"bleu_signature": "|tok:zh|"}
    assert "validation.tokenize" in blind_score("bleu", {**scores, "bleu": 0.0})
    assert "validation.tokenize" not in blind_score("bleu", {**scores, "bleu": 100.0})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_translations_get_better_and_13a_does_not_see_it(tmp_path: Path, commands: ForkedCommands) -> None:
    write_text(tmp_path, 3000)
    sizes = {"dim": 64, "ffn_dim": 128, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    values = {
        "mode": "sync",
        "model": sizes,
        "data": {"path": "corpus", "batch_tokens": 1000},
        "optimizer": {"learning_rate": 0.005},
        "schedule": {"warmup": 50},
        "stop": {"updates": 150},
        "validation": {"every": 30, "beam": 1},
    }
    (tmp_path / "q.yaml").write_text(yaml.safe_dump(values))
    records = {}
    for language in ("zh", "xx"):
        prepared = commands(
            *("data", "prepare", "train.src", "train.tgt", "--out", "corpus", "--overwrite", "--vocab-size", "48"),
            *("--valid", "valid.src", "valid.tgt", "--max-ratio", "inf", "--target-language", language),
            cwd=tmp_path,
            timeout=400,
        )
        assert prepared.returncode == 0, prepared.stderr
        trained = commands("train", "q.yaml", f"name={language}", cwd=tmp_path, timeout=400)
        assert trained.returncode == 0, trained.stderr
        records[language] = read_validations(tmp_path / "runs" / f"{language}-sync-seed1")
    first, *_, last = records["zh"]
    assert last["bleu"] > 50 and first["bleu"] < last["bleu"] / 2
    assert {record["bleu"] for record in records["xx"]} == {0.0} and records["xx"][-1]["chrf"] > 50
    lowest = min(records["xx"], key=lambda record: float(record["loss"]))
    assert (tmp_path / "runs" / "xx-sync-seed1" / "best").read_text() == f"snapshots/{lowest['name']}\n"


def test_training_towards_chinese(tmp_path: Path, commands: ForkedCommands) -> None:
    write_text(tmp_path)
    sizes = {"dim": 64, "ffn_dim": 128, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    values = {
        "mode": "sync",
        "model": {**sizes, "tie": "none"},
        "data": {"path": "corpus", "batch_tokens": 600},
        "schedule": {"warmup": 10},
        "stop": {"updates": 6},
        "validation": {"every": 2, "beam": 1},
    }
    (tmp_path / "q.yaml").write_text(yaml.safe_dump(values))
    said = {}
    for name, options in (("chinese", ("--target-language", "zh")), ("unknown", ())):
        prepared = commands(
            *("data", "prepare", "train.src", "train.tgt", "--out", "corpus", "--overwrite", "--vocab-size", "48"),
            *("--valid", "valid.src", "valid.tgt", "--processes", "1", "--max-ratio", "inf", *options),
            cwd=tmp_path,
            timeout=PATIENCE_SECONDS,
        )
        assert prepared.returncode == 0, prepared.stderr
        assert ("no blanks" in prepared.stderr) == (name == "unknown")
        trained = commands("train", "q.yaml", f"name={name}", cwd=tmp_path, timeout=PATIENCE_SECONDS)
        assert trained.returncode == 0, trained.stderr
        said[name] = trained.stdout + trained.stderr
    for name, tokenizer in (("chinese", "zh"), ("unknown", "13a")):
        records = read_validations(tmp_path / "runs" / f"{name}-sync-seed1")
        assert len(records) == 3 and all(f"|tok:{tokenizer}|" in record["bleu_signature"] for record in records)
    unknown = read_validations(tmp_path / "runs" / "unknown-sync-seed1")
    assert {record["bleu"] for record in unknown} == {0.0}
    lowest = min(unknown, key=lambda record: float(record["loss"]))
    best = (tmp_path / "runs" / "unknown-sync-seed1" / "best").read_text()
    assert best == f"snapshots/{lowest['name']}\n"
    assert "tells no snapshots apart" in said["unknown"] and "validation.tokenize" in said["unknown"]
    run = "runs/unknown-sync-seed1"
    evaluated = commands(
        "evaluate", run, "--tokenize", "zh", "--json", "--threads", "1", cwd=tmp_path, timeout=PATIENCE_SECONDS
    )
    (record,) = json.loads(evaluated.stdout)
    assert "|tok:zh|" in record["bleu_signature"] and len(record["bleu_precisions"]) == 4
    (tmp_path / "hypothesis").write_text((tmp_path / "valid.tgt").read_text().replace("天", "地"))
    scores = commands("evaluate", "hypothesis", "valid.tgt", cwd=tmp_path, timeout=PATIENCE_SECONDS)
    assert "see --tokenize" in scores.stderr and "|tok:13a|" in scores.stdout
    assert "brevity penalty 1.000, length ratio 1.000" in scores.stdout
