"""COMET by its own package, with a tiny model that is made here; the package wants an environment of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from tiny_run import TinyRun

from hpcasync.cli.evaluate import evaluate
from hpcasync.errors import UserError
from hpcasync.nmt.comet import Comet, find_comet

WORDS = [
    "der",
    "die",
    "das",
    "alte",
    "kleine",
    "hund",
    "kater",
    "sieht",
    "mag",
    "und",
    "the",
    "old",
    "small",
    "dog",
    "cat",
    "sees",
    "likes",
    "and",
]


def make_comet(directory: Path) -> Path:
    """A COMET model with a BERT of two thousand parameters that knows a few words."""
    pytest.importorskip("comet", reason="unbabel-comet wants an environment of its own")
    from comet.models import RegressionMetric

    pytorch_lightning, transformers = (pytest.importorskip(name) for name in ("pytorch_lightning", "transformers"))
    encoder = directory / "encoder"
    encoder.mkdir(parents=True)
    vocabulary = encoder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    transformers.BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(encoder)
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    transformers.BertModel(
        transformers.BertConfig(vocab_size=len(WORDS) + 5, max_position_embeddings=64, **sizes)
    ).save_pretrained(encoder)
    options: dict[str, Any] = {
        "encoder_model": "BERT",
        "pretrained_model": str(encoder),
        "hidden_sizes": [8, 4],
        "layer": "mix",
    }
    model = RegressionMetric(**options, local_files_only=True)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    content["pytorch-lightning_version"] = pytorch_lightning.__version__
    (directory / "checkpoints").mkdir()
    torch.save(content, directory / "checkpoints" / "model.ckpt")
    (directory / "hparams.yaml").write_text(yaml.safe_dump({"class_identifier": "regression_metric", **options}))
    return directory


def test_a_score_is_the_mean_of_what_the_model_gives(tmp_path: Path) -> None:
    path = make_comet(tmp_path / "comet")
    from comet import load_from_checkpoint

    sources, hypotheses = ["the old dog", "the cat sees"], ["der alte hund", "der kater mag"]
    references = ["der alte hund", "der kater sieht"]
    score = Comet(path, torch.device("cpu")).score(sources, hypotheses, references)
    model = load_from_checkpoint(str(path / "checkpoints" / "model.ckpt")).eval()
    rows = zip(sources, hypotheses, references, strict=True)
    inputs = model.prepare_sample([{"src": s, "mt": h, "ref": r} for s, h, r in rows], stage="predict")
    with torch.no_grad():
        expected = 100 * float(model(**inputs[0] if isinstance(inputs, tuple) else inputs)["score"].mean())
    assert score.value == pytest.approx(expected, abs=1e-3) and score.name == "COMET"
    assert score.signature.startswith("model:")


def test_evaluate_scores_a_run_with_it(tmp_path: Path, tiny_run: TinyRun) -> None:
    path = make_comet(tmp_path / "comet")
    result = CliRunner().invoke(evaluate, [str(tiny_run.run_dir), "--max-sentences", "3", "--comet", str(path)])
    assert result.exit_code == 0, result.output
    assert "COMET" in result.output and "times 100" in result.output
    without = CliRunner().invoke(evaluate, [str(tiny_run.run_dir), "--max-sentences", "3"])
    assert without.exit_code == 0 and "COMET" not in without.output


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("comet", reason="unbabel-comet wants an environment of its own")
    with pytest.raises(UserError, match="holds no COMET model"):
        find_comet(tmp_path)


def test_without_the_package_it_says_what_is_missing(tmp_path: Path) -> None:
    try:
        import comet  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"unbabel-comet, which is not installed: .*hpcasync\[comet\]"):
            find_comet(tmp_path)
    else:
        pytest.skip("unbabel-comet is installed")
