"""Scores against values computed by hand and by sacreBLEU's own functions; loss; snapshots of a run."""

import json
import math
import shutil
from pathlib import Path

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file, save_file
from tiny_run import NAMES, TinyRun, translation_of

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError
from hpcasync.nmt.evaluation import EvaluationSettings, score_parameters
from hpcasync.nmt.load import load_model
from hpcasync.nmt.run_evaluation import evaluate_snapshots
from hpcasync.nmt.scoring import Loss, corpus_loss, corpus_score, paired_bootstrap
from hpcasync.runs.records import read_records
from hpcasync.runs.snapshots import list_snapshots

REFERENCE = ["The cat sat on the mat.", "It was a fine day in May, was it not?", "Nobody came."]
HYPOTHESES = ["the cat sat on the mat .", "It was a fine day in June, was it not?", "Nobody came."]


def test_bleu_by_hand() -> None:
    # 13a splits the full stop off: 8 tokens, of which "today" and with it 1, 2, 2, 2 n-grams are not in the reference.
    score = corpus_score("bleu", ["the cat sat on a mat today."], [["the cat sat on a mat now."]])
    assert score.value == pytest.approx(100 * (7 / 8 * 5 / 7 * 4 / 6 * 3 / 5) ** 0.25)
    short = corpus_score("bleu", ["the cat sat on"], [["the cat sat on it"]])
    assert short.value == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_scores_are_those_of_sacrebleu_and_carry_signatures() -> None:
    references = [REFERENCE, HYPOTHESES]
    bleu, chrf, ter = (corpus_score(name, HYPOTHESES, references) for name in ("bleu", "chrf", "ter"))
    assert bleu.value == pytest.approx(100) and chrf.value == pytest.approx(100) and ter.value == 0
    bleu, chrf, ter = (corpus_score(name, HYPOTHESES, [REFERENCE]) for name in ("bleu", "chrf", "ter"))
    assert bleu.value == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCE]).score
    assert chrf.value == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCE]).score
    assert ter.value == sacrebleu.corpus_ter(HYPOTHESES, [REFERENCE]).score
    version = sacrebleu.__version__
    assert bleu.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert chrf.signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert ter.signature == f"nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:{version}"
    assert (bleu.name, chrf.name, ter.name) == ("BLEU", "chrF2", "TER")


def test_unequal_lengths_name_both_counts() -> None:
    with pytest.raises(UserError, match=r"the hypotheses has 2 lines but the reference has 3"):
        corpus_score("bleu", HYPOTHESES[:2], [REFERENCE])
    with pytest.raises(UserError, match=r"reference 2 has 1 lines but the reference has 3"):
        corpus_score("bleu", HYPOTHESES, [REFERENCE, ["a"]])
    with pytest.raises(UserError, match=r"the reference is empty"):
        corpus_score("bleu", [], [[]])


def test_paired_bootstrap_tells_systems_apart() -> None:
    reference = [f"sentence number {i} has {i % 7} words or so ." for i in range(60)]
    good = list(reference)
    bad = [
        line if i % 2 else line.replace("number", "of").replace("words", "things") for i, line in enumerate(reference)
    ]
    compared = paired_bootstrap({"good": good, "bad": bad}, [reference], ["bleu", "chrf"], 200)
    assert [score.name for score in compared["bad"]] == ["BLEU", "chrF2"]
    assert compared["good"][0].p_value is None and compared["good"][0].value == pytest.approx(100)
    assert compared["bad"][0].value == pytest.approx(corpus_score("bleu", bad, [reference]).value)
    p_value = compared["bad"][0].p_value
    assert p_value is not None and p_value < 0.05
    assert "|bs:200|seed:12345|" in compared["bad"][0].signature
    alike = paired_bootstrap({"a": bad, "b": list(bad)}, [reference], ["bleu"], 200)["b"][0]
    assert alike.p_value == 1.0
    with pytest.raises(UserError, match=r"at least two systems"):
        paired_bootstrap({"a": bad}, [reference])


def test_loss_and_perplexity() -> None:
    assert Loss(nll=6.0, num_tokens=3).per_token == 2.0
    assert Loss(nll=6.0, num_tokens=3).perplexity == pytest.approx(math.exp(2))
    assert Loss(nll=3000.0, num_tokens=3).perplexity == math.inf


def test_loss_of_a_corpus_is_the_sum_over_its_pairs(tiny_run: TinyRun) -> None:
    trained = load_model(tiny_run.run_dir / "snapshots" / NAMES[1])
    sources, targets = PreparedCorpus.open(tiny_run.corpus).raw("valid")
    vocabularies = trained.source_vocabulary, trained.target_vocabulary
    together = corpus_loss(trained.model, (sources, targets), vocabularies, max_length=64, batch_tokens=100)
    total = 0.0
    for pair in zip(sources, targets, strict=True):
        source, target = (v.encode(text) for v, text in zip(vocabularies, pair, strict=True))
        bos, eos = trained.target_vocabulary.bos_id, trained.target_vocabulary.eos_id
        with torch.inference_mode():
            state = trained.model.start(torch.tensor([[*source, eos]]))
            for previous, token in zip([bos, *target], [*target, eos], strict=True):
                logits = trained.model.step(torch.tensor([previous]), state)
                total -= float(logits[0].log_softmax(0)[token])
    assert together.num_tokens == sum(len(trained.target_vocabulary.encode(t)) + 1 for t in targets)
    assert together.nll == pytest.approx(total, rel=1e-4)


def test_scores_of_a_trained_model(tiny_run: TinyRun) -> None:
    corpus = PreparedCorpus.open(tiny_run.corpus)
    trained = load_model(tiny_run.run_dir)
    scores = score_parameters(trained, corpus, EvaluationSettings(split="test"))
    assert scores.bleu > 90 and scores.chrf > 90 and scores.loss < 0.1
    assert scores.perplexity == pytest.approx(math.exp(scores.loss))
    assert scores.num_sentences == len(corpus.raw("test")[0])
    few = score_parameters(trained, corpus, EvaluationSettings(split="test", max_sentences=3))
    assert few.num_sentences == 3 and few.loss == pytest.approx(scores.loss)
    assert translation_of("the old cat") == "der alte Kater"


def test_a_diverged_model_has_scores(tiny_run: TinyRun) -> None:
    trained = load_model(tiny_run.run_dir)
    with torch.no_grad():
        next(trained.model.parameters()).fill_(math.nan)
    scores = score_parameters(trained, PreparedCorpus.open(tiny_run.corpus), EvaluationSettings())
    assert math.isnan(scores.loss) and scores.bleu == scores.chrf == 0


def test_snapshots_are_scored_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(tiny_run.run_dir, tmp_path / "run"))
    corpus, cpu = PreparedCorpus.open(tiny_run.corpus), torch.device("cpu")
    file = run_dir / "evaluation-valid.jsonl"

    def evaluate(count: int = 3, beam: int = 2) -> list[dict[str, object]]:
        snapshots = list_snapshots(run_dir)[:count]
        return list(evaluate_snapshots(run_dir, snapshots, corpus, EvaluationSettings(beam=beam), cpu))

    records = evaluate(count=2)
    assert [record["snapshot"] for record in records] == list(NAMES[:2])
    assert [record["num_updates"] for record in records] == [5, 60]
    assert records[0]["corpus_digest"] == corpus.digest
    # A crash while the next record was written; damaged parameters show that the first two are not read again.
    with file.open("a") as stream:
        stream.write('{"snapshot": "u000')
    for name in NAMES[:2]:
        (run_dir / "snapshots" / name / "parameters.safetensors").write_bytes(b"")
    assert evaluate()[:2] == records
    assert [json.loads(line)["snapshot"] for line in file.read_text().splitlines()] == list(NAMES)
    assert len(read_records(file)) == 3
    # Other settings need other scores.
    with pytest.raises(UserError, match=r"is damaged or truncated"):
        evaluate(beam=3)


def test_scores_that_are_not_finite_are_valid_json(tiny_run: TinyRun, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(tiny_run.run_dir, tmp_path / "run"))
    file = run_dir / "snapshots" / NAMES[0] / "parameters.safetensors"
    save_file({name: torch.full_like(tensor, math.nan) for name, tensor in load_file(file).items()}, file)
    corpus = PreparedCorpus.open(tiny_run.corpus)
    snapshots = list_snapshots(run_dir)[:1]
    (record,) = evaluate_snapshots(run_dir, snapshots, corpus, EvaluationSettings(), torch.device("cpu"))
    assert record["loss"] is None and record["bleu"] == 0
    assert "NaN" not in (run_dir / "evaluation-valid.jsonl").read_text()


def test_a_foreign_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[1]\n")
    with pytest.raises(UserError, match=r"line 1 is no JSON object"):
        read_records(tmp_path / "file")
    (tmp_path / "file").write_text("{}\nwhat\n{}\n")
    with pytest.raises(UserError, match=r"line 2 is no JSON"):
        read_records(tmp_path / "file")
