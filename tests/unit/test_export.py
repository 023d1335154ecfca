"""`hpcasync export`: other programs load what is written and translate alike."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from click.testing import CliRunner, Result
from tiny_run import TinyRun, all_sentences, make_tiny_run
from torch import Tensor

from hpcasync.cli.export import export
from hpcasync.data.collate import collate_sources
from hpcasync.errors import UserError
from hpcasync.nmt.load import TrainedModel, load_model
from hpcasync.nmt.search import Hypothesis, Searcher, SearchSettings

VARIANTS: dict[str, dict[str, str]] = {
    "pre": {},
    "post": {"norm": "post", "tie": "target"},
    "post-untied": {"norm": "post", "tie": "none"},
    "pre-zero": {"decoder_start": "zero"},
    "post-zero": {"norm": "post", "decoder_start": "zero"},
}
SENTENCES = all_sentences()
TRANSLATOR = Path(__file__).parents[1] / "programs" / "foreign_translator.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_run: TinyRun) -> dict[str, TinyRun]:
    """Models of each kind that have learned to translate."""
    made = {name: make_tiny_run(tmp_path_factory.mktemp(name), **values) for name, values in VARIANTS.items() if values}
    return {"pre": tiny_run, **made}


def exported(run: TinyRun, form: str, directory: Path) -> Path:
    result = invoke(run, form, directory)
    if result.exception:
        raise result.exception
    return directory


def invoke(run: TinyRun, form: str, directory: Path, *options: str) -> Result:
    arguments = [str(run.run_dir), "--format", form, "--out", str(directory), *options]
    return CliRunner().invoke(export, arguments)


def ours(trained: TrainedModel, beam: int, **values: float) -> list[Hypothesis]:
    vocabularies = trained.source_vocabulary, trained.target_vocabulary
    settings = SearchSettings(beam=beam, **values)  # type: ignore[arg-type]
    searcher = Searcher(trained.model, *vocabularies, settings, max_length=64)
    return [best for best, *_ in searcher.translate(SENTENCES)]


def our_logits(trained: TrainedModel, source: str, target: list[int]) -> Tensor:
    """[T, V], with the tokens of the target given."""
    ids = collate_sources([trained.source_vocabulary.encode(source)], trained.source_vocabulary)
    with torch.inference_mode():
        state = trained.model.start(ids)
        given = [trained.target_vocabulary.bos_id, *target[:-1]]
        return torch.cat([trained.model.step(torch.tensor([token]), state) for token in given])


def assert_alike(texts: list[str], scores: list[float], expected: list[Hypothesis]) -> None:
    """The same text in 99 % of the sentences, and the same score there."""
    pairs = list(zip(texts, scores, expected, strict=True))
    same = [(score, hypothesis) for text, score, hypothesis in pairs if text == hypothesis.text]
    assert len(same) >= 0.99 * len(pairs)
    for score, hypothesis in same:
        assert score == pytest.approx(hypothesis.score, abs=1e-3)


def ask(kind: str, **request: object) -> dict[str, Any]:
    """Another program's answer, from a process of its own."""
    text = json.dumps({"kind": kind, **request})
    done = subprocess.run([sys.executable, TRANSLATOR], input=text, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", VARIANTS)
def test_ctranslate2_translates_alike(runs: dict[str, TinyRun], name: str, tmp_path: Path) -> None:
    directory = exported(runs[name], "ctranslate2", tmp_path / "out")
    source, target = (
        sentencepiece.SentencePieceProcessor(str(directory / f"{side}.spm")) for side in ("source", "target")
    )
    trained = load_model(runs[name].run_dir)
    values = [
        {"length_penalty": penalty, "patience": patience}
        for penalty, patience in ((0.0, 1.0), (0.0, 2.0), (0.6, 2.0), (1.0, 2.0))
    ]
    beams = [1, 5, 5, 5]
    expected = [ours(trained, beam, **each) for beam, each in zip(beams, values, strict=True)]
    last = expected[-1]
    answer = ask(
        "ctranslate2",
        directory=str(directory),
        sources=source.encode(SENTENCES, out_type=str),
        searches=[{"beam_size": beam, **each} for beam, each in zip(beams, values, strict=True)],
        scored=[
            source.encode(SENTENCES[:20], out_type=str),
            [trained.target_vocabulary.pieces(hypothesis.tokens[:-1]) for hypothesis in last[:20]],
        ],
    )
    for found, hypotheses in zip(answer["found"], expected, strict=True):
        assert_alike([target.decode(pieces) for pieces, _ in found], [score for _, score in found], hypotheses)
    for scores, hypothesis, sentence in zip(answer["scored"], last, SENTENCES, strict=False):
        tokens = list(hypothesis.tokens)
        log_probs = our_logits(trained, sentence, tokens).log_softmax(1)
        assert scores == pytest.approx([float(row[t]) for row, t in zip(log_probs, tokens, strict=True)], abs=1e-4)


@pytest.mark.parametrize("name", ["post", "post-untied"])
def test_transformers_translate_alike(runs: dict[str, TinyRun], name: str, tmp_path: Path) -> None:
    from transformers import MarianMTModel, MarianTokenizer

    directory = exported(runs[name], "huggingface", tmp_path / "out")
    model = MarianMTModel.from_pretrained(directory)
    tokenizer = MarianTokenizer.from_pretrained(directory)
    trained = load_model(runs[name].run_dir)
    assert model.generation_config.suppress_tokens == [0, 2, 1] and model.generation_config.num_beams == 5
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    found = model.generate(**batch, num_beams=1)
    expected = ours(trained, 1)
    assert_alike(tokenizer.batch_decode(found, skip_special_tokens=True), [h.score for h in expected], expected)
    # Without settings as ours without settings; what ends a search there has another name.
    for penalty, patience, options in ((1.0, 2.0, {}), (0.0, 2.0, {}), (1.0, 1.0, {"early_stopping": True})):
        expected = ours(trained, 5, length_penalty=penalty, patience=patience)
        settings = {**options, **({} if penalty == 1 else {"length_penalty": penalty})}
        result = model.generate(**batch, **settings, output_scores=True, return_dict_in_generate=True)
        texts = tokenizer.batch_decode(result.sequences, skip_special_tokens=True)
        assert_alike(texts, result.sequences_scores.tolist(), expected)
    for sentence, hypothesis in zip(SENTENCES[:20], expected, strict=False):
        tokens = list(hypothesis.tokens)
        given = torch.tensor([[trained.target_vocabulary.bos_id, *tokens[:-1]]])
        with torch.inference_mode():
            logits = model(**tokenizer(sentence, return_tensors="pt"), decoder_input_ids=given).logits[0]
        torch.testing.assert_close(logits, our_logits(trained, sentence, tokens), atol=1e-4, rtol=1e-4)


def test_marian_translates_alike(runs: dict[str, TinyRun], tmp_path: Path) -> None:
    if find_spec("pymarian") is None:
        pytest.skip("pymarian has wheels up to Python 3.12")
    directory = exported(runs["post-zero"], "marian", tmp_path / "out")
    trained = load_model(runs["post-zero"].run_dir)
    beams = 1, 5
    options = [
        f"-c {directory}/decoder.yml --cpu-threads 1 --beam-size {beam} --normalize 0 --n-best --quiet"
        for beam in beams
    ]
    answer = ask("marian", sources=SENTENCES, searches=options)
    for beam, found in zip(beams, answer["found"], strict=True):
        lines = [line.split(" ||| ") for line in found]
        first = [next(line for line in lines if line[0] == str(number)) for number in range(len(SENTENCES))]
        expected = ours(trained, beam, length_penalty=0.0)
        assert_alike([row[1] for row in first], [float(row[3]) for row in first], expected)


def test_averages_and_snapshots(tiny_run: TinyRun, tmp_path: Path) -> None:
    from ctranslate2.specs import TransformerSpec  # noqa: F401

    assert invoke(tiny_run, "ctranslate2", tmp_path / "mean", "--average", "2").exit_code == 0
    assert invoke(tiny_run, "ctranslate2", tmp_path / "last").exit_code == 0
    mean, last = ((tmp_path / name / "model.bin").read_bytes() for name in ("mean", "last"))
    assert len(mean) == len(last) and mean != last


def test_what_a_format_cannot_express_is_refused_with_the_reason(runs: dict[str, TinyRun], tmp_path: Path) -> None:
    for name, form, reason in (
        ("pre", "huggingface", r"model\.norm=pre.*--format ctranslate2"),
        ("post-zero", "huggingface", r"model\.decoder_start=zero.*--format"),
        ("pre-zero", "marian", r"model\.norm=pre.*--format ctranslate2"),
        ("post", "marian", r"model\.decoder_start=embedding.*train with model\.decoder_start=zero"),
    ):
        result = invoke(runs[name], form, tmp_path / "out")
        with pytest.raises(UserError, match=reason):
            raise result.exception or AssertionError
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_directory_that_is_there_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    result = invoke(tiny_run, "ctranslate2", tmp_path)
    assert isinstance(result.exception, UserError) and "is there already" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
