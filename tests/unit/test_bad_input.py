"""Every mistake of a user ends the command with one message, in seconds, and harms nothing that is there.

Mistakes that concern several ranks are in tests/parallel/test_bad_input_ranks.py.
"""

import gzip
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from bad_input import (
    MOST_CPU_SECONDS,
    PATIENCE_SECONDS,
    Case,
    Prepare,
    both,
    change,
    check_refusal,
    digest_of,
    make_directory,
    nothing,
    remove,
    rename,
    write,
)
from forked_commands import ForkedCommands
from tiny_run import NAMES, TinyRun

from hpcasync.data.prepare import PrepareOptions, prepare

CONFIG = {
    "name": "x",
    "mode": "sync",
    "data": {"path": "corpus", "batch_tokens": 200},
    "model": {"dim": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1},
    "stop": {"updates": 1},
}
BEST = f"run/snapshots/{NAMES[-1]}"


def setting(name: str, overrides: str, *says: str, cure: str) -> Case:
    """A configuration that is right but for some `key=value`."""
    return Case(name, f"train run.yaml {overrides}", says, cure)


def file(name: str, content: str | bytes, *says: str, cure: str) -> Case:
    """A configuration file of this content."""
    return Case(name, "train bad.yaml", ("bad.yaml", *says), cure, write("bad.yaml", content))


CONFIGURATION = [
    Case("no file", "train absent.yaml", ("absent.yaml", "No such file"), "give the path of a YAML file"),
    Case("a directory", "train corpus", ("corpus", "Is a directory"), "give the path of a YAML file"),
    file("no YAML", "seed: [1", "no valid YAML", cure="line 1"),
    file("a list", "- seed: 1", "not list", cure="must hold a mapping"),
    file("an empty file", "", "not NoneType", cure="must hold a mapping"),
    file("binary", b"\xff\xfe\x00a", "no valid YAML", cure="invalid start byte"),
    file("a tab", "stop:\n\tupdates: 1\n", "no valid YAML", cure="line 2"),
    file("a key twice", "seed: 1\nstop: {updates: 1}\nseed: 2\n", "seed", "line 3", cure="remove one"),
    file("a key twice below", "stop:\n  updates: 1\n  updates: 2\n", "updates", "line 3", cure="remove one"),
    file("no stop", "data: {path: corpus}\n", cure="stop is required"),
    file("no corpus", "data: {}\nstop: {updates: 1}\n", cure="data.path is required"),
    file("a number for a key", "1: 2\ndata: {path: corpus}\nstop: {updates: 1}\n", cure="should be strings"),
    setting("unknown key", "moed=sync", "override 'moed=sync'", "unknown key moed", cure="did you mean mode?"),
    setting(
        "unknown key below", "optimizer.learningrate=1", "learningrate", cure="did you mean optimizer.learning_rate?"
    ),
    setting("unknown section", "modle.dim=32", "unknown key modle", cure="did you mean model.dim?"),
    setting("nothing near", "roles.xyz=1", "unknown key roles.xyz", cure="valid keys: servers"),
    setting("text for a number", "seed=one", "seed", "given: 'one'", cure="valid integer"),
    setting("a fraction for a number", "exchange.slots=1.5", "exchange.slots", cure="valid integer"),
    setting("a list for a number", "data.batch_tokens=[1]", "data.batch_tokens", "given: [1]", cure="valid integer"),
    setting("a value for a section", "model=big", "model", "given: 'big'", cure="valid dictionary"),
    setting("negative", "seed=-1", "seed", "given: -1", cure="greater than or equal to 0"),
    setting("more than 64 bits", "seed=18446744073709551616", "seed", cure="less than or equal to"),
    setting("not a number", "optimizer.learning_rate=.nan", "optimizer.learning_rate", cure="finite number"),
    setting("infinity", "optimizer.learning_rate=1e999", "optimizer.learning_rate", cure="finite number"),
    setting("a time for a number", "stop.updates=1:40", "stop.updates", "given: '1:40'", cure="valid integer"),
    setting("a truth value for a number", "seed=true", "seed", "given: 'true'", cure="valid integer"),
    setting("a comment in a number", "'seed=1 # one'", "seed", "given: '1 # one'", cure="valid integer"),
    setting("a number beyond floats", "optimizer.eps=1e-300", "optimizer.eps", cure="from 1e-37 to 1e+37"),
    setting("a huge number", f"stop.tokens={10**30}", "stop.tokens", cure="less than 2 ** 63"),
    setting("a path that cannot be", f"data.path={'a' * 300}", "data.path", cure="too long"),
    file("recursion", "stop: &s {updates: *s}\n", "no valid YAML", cure="it holds itself"),
    setting("not in the list", "mode=asink", "mode", "given: 'asink'", cure="'async-global'"),
    setting("a name with a slash", "name=a/b", "name", "given: 'a/b'", cure="should match pattern"),
    setting("local of async", "mode=async-global accumulate.local=2", "mode async-global", cure="must be 1, not 2"),
    setting("global of async", "mode=async accumulate.global=4", "mode async", cure="must be 1, not 4"),
    setting("heads", "model.dim=100 model.heads=8", "dim 100", cure="not a multiple of heads 8"),
    setting("cosine", "schedule.name=cosine", "cosine", cure="needs total greater than warmup"),
    setting("never ends", "stop.updates=0", "would never end", cure="set one of updates"),
    setting("patience", "stop.patience=3", "stop.patience", cure="set validation.every"),
    setting("no =", "seed", "override 'seed'", cure="of the form key=value"),
    setting("no key", "=3", "override '=3'", cure="of the form key=value"),
    setting("no YAML in a value", "'seed=[1'", "override 'seed=[1'", cure="no valid YAML"),
    setting("below a value", "name.deep=3", "override 'name.deep=3'", cure="name is a value, not a section"),
    Case("both flags", "train run.yaml --resume --overwrite", ("--resume", "--overwrite"), "exclude each other"),
    Case("no configuration", "train", ("CONFIG",), "Missing argument"),
    Case("unknown option", "train run.yaml --resum", ("--resum",), "--resume"),
    setting("batch too small", "data.batch_tokens=4", "data.batch_tokens=4", cure="raise it"),
    setting("sentences too long", "model.max_length=4", "model.max_length=4", "corpus", cure="--max-length 3"),
    setting("no GPU", "device=cuda", "device=cuda", cure="device=cpu"),
    setting("no GPU to score with", "validation.device=cuda", "validation.device=cuda", cure="validation.device=cpu"),
    setting("asynchronous alone", "mode=async-global", "1 MPI rank", "roles.servers=1", cure="start 2 ranks or more"),
]


def other_size(manifest: bytes) -> bytes:
    """A manifest with another count."""
    return manifest.replace(b'"kept": ', b'"kept": 1')


def same_length(content: bytes) -> bytes:
    """Other bytes, as many."""
    return bytes([content[0] ^ 0xFF]) + content[1:]


def corpus(name: str, damage: Prepare, *says: str, cure: str, command: str = "train run.yaml") -> Case:
    """A damaged corpus."""
    return Case(name, command, ("corpus", *says), cure, damage)


CORPORA = [
    corpus("missing", remove("corpus"), "no prepared corpus", cure="`hpcasync data prepare`"),
    corpus("half written", rename("corpus", "corpus.partial"), "corpus.partial", cure="run it again"),
    corpus("not prepared", remove("corpus/manifest.json"), "no manifest.json", cure="`hpcasync data prepare`"),
    corpus("a file", both(remove("corpus"), write("corpus", "x")), cure="`hpcasync data prepare`"),
    corpus("no manifest", write("corpus/manifest.json", "{"), "manifest.json", cure="prepare the corpus again"),
    corpus("manifest of a list", write("corpus/manifest.json", "[]"), "manifest.json", cure="prepare the corpus again"),
    corpus("tampered manifest", change("corpus/manifest.json", other_size), "disagrees", cure="prepare the corpus"),
    corpus("newer release", change("corpus/manifest.json", lambda m: m.replace(b'"version": 1', b'"version": 2')),
           "version", cure="prepare the corpus again"),
    corpus("truncated tokens", change("corpus/train.source.tokens", lambda m: m[:-2]), "train.source.tokens",
           cure="copy it again"),
    corpus("longer offsets", change("corpus/train.target.offsets", lambda m: m + m[:8]), "train.target.offsets",
           cure="copy it again"),
    corpus("other offsets", change("corpus/train.target.offsets", lambda m: m[:-1] + b"\x01"), "train.target.offsets",
           cure="copy it again"),
    corpus("tokens missing", remove("corpus/train.target.tokens"), "train.target.tokens is missing", cure="copy it"),
    corpus("model missing", remove("corpus/source.spm"), "source.spm is missing", cure="copy it again"),
    corpus("other vocabulary", change("corpus/target.spm", same_length), "target.spm", cure="copy it again"),
    corpus("no valid text", both(remove("corpus"), rename("no-valid", "corpus")),
           "no valid text", cure="validation.score=false"),
    corpus("check: missing", remove("corpus"), "no prepared corpus", cure="data prepare", command="data check corpus"),
    corpus("check: other tokens", change("corpus/train.source.tokens", same_length), "train.source.tokens",
           cure="prepare the corpus again", command="data check corpus"),
    corpus("check: other text", change("corpus/valid.source.txt", same_length), "valid.source.txt",
           cure="prepare the corpus again", command="data check corpus"),
]  # fmt: skip

PREPARE = "data prepare train.en train.de --out new --vocab-size 50"
WITH_MODELS = "--source-model corpus/source.spm --target-model corpus/target.spm --processes 1"


def preparing(name: str, more: str, *says: str, cure: str, damage: Prepare = nothing) -> Case:
    """A `data prepare` that cannot be done."""
    return Case(name, f"{PREPARE} {more}".strip(), says, cure, damage)


PREPARING = [
    preparing("text missing", "", "cannot read train.de", cure="No such file", damage=rename("train.de", "absent")),
    preparing("unequal lines", "", "train.en has", "train.de has", cure="line n of one must be the translation",
              damage=change("train.de", lambda t: t + b"noch eine\n")),
    preparing("empty text", "", "train.en", cure="are empty",
              damage=both(write("train.en", ""), write("train.de", ""))),
    preparing("no UTF-8", "", "train.de, line 1", "invalid UTF-8", cure="iconv",
              damage=change("train.de", lambda t: b"\xe9" + t[1:])),
    preparing("broken gzip", "", "train.de", "truncated gzip", cure="fetch or compress it again",
              damage=change("train.de", lambda t: gzip.compress(t)[:-9])),
    preparing("one side twice", "--valid train.en train.en", "train.en", cure="name the two sides"),
    preparing("vocabulary too large", "--vocab-size 9000", "--vocab-size 9000 is too large", cure="at most"),
    preparing("vocabulary too small", "--vocab-size 9", "--vocab-size 9 is too small", cure="raise it"),
    preparing("out is in use", "--out corpus", "--out ", "/corpus already holds", cure="--overwrite"),
    preparing("out is something else", "--out run", "--out ", "/run holds something", cure="name another"),
    preparing("out is a file", "--out run.yaml", "--out ", "/run.yaml is a file", cure="name a directory"),
    preparing("out below a file", "--out run.yaml/new", "run.yaml", "cannot write", cure="name another --out"),
    preparing("out cannot be", "--out /proc/new", "/proc", "cannot write", cure="name another --out"),
    preparing("model missing", "--source-model absent.spm", "cannot read", "absent.spm", cure="or restore it"),
    preparing("model is garbage", "--source-model run.yaml", "run.yaml is no SentencePiece model", cure="spm_train"),
    preparing("joint of two", "--joint --source-model corpus/source.spm", "--joint", cure="the same file"),
    preparing("all filtered", f"{WITH_MODELS} --max-length 1", "no pair", cure="exceed --max-length 1"),
    preparing("ratio is none", "--max-ratio nan", "--max-ratio", cure="not a finite number"),
    preparing("coverage too low", "--character-coverage 0.95", "--character-coverage", cure="0.98<=x<=1.0"),
    preparing("vocabulary beyond C", f"--vocab-size {10**12}", "--vocab-size", cure="most that is possible"),
    preparing("no number", "--vocab-size many", "--vocab-size", cure="not a valid integer"),
    Case("unknown corpus", "data fetch multi31k new", ("multi31k",), "multi30k"),
    Case("unknown language", "data fetch embedded new --target xx", ("xx",), "de"),
    Case("no mirror", "data fetch multi30k new --mirror absent", ("--mirror absent",), "http(s):// URL"),
    Case("empty mirror", "data fetch multi30k new --mirror empty", ("--mirror empty has no file",), "upstream: http",
         make_directory("empty")),
    Case("fetch below a file", "data fetch embedded run.yaml/new --pairs 5", ("cannot write", "run.yaml"),
         "name another directory"),
]  # fmt: skip

TRANSLATE = "translate run --input valid.en --device cpu"
MODELS = [
    Case("no run", "translate absent", ("absent does not exist",), "give a run directory"),
    Case("no run in it", "translate corpus", ("config.yaml", "corpus"), "give a run directory"),
    Case("no snapshot", TRANSLATE, ("run", "no snapshot yet"), "wait", remove("run/best", "run/last")),
    Case("snapshot gone", TRANSLATE, ("run/best", NAMES[-1]), "give another snapshot", remove(BEST)),
    Case("truncated", TRANSLATE, (f"{BEST}/parameters", "truncated"), "use another snapshot",
         change(f"{BEST}/parameters.safetensors", lambda b: b[:-10])),
    Case("garbage", TRANSLATE, (f"{BEST}/parameters", "damaged"), "use another snapshot",
         write(f"{BEST}/parameters.safetensors", b"garbage" * 10)),
    Case("another model", TRANSLATE, (f"{BEST}/parameters", "another model"), "config.yaml",
         change("run/config.yaml", lambda c: c.replace(b"ffn_dim: 64", b"ffn_dim: 80"))),
    Case("model file missing", TRANSLATE, ("run/source.spm", "cannot read"), "or restore it",
         remove("run/source.spm")),
    Case("model file garbage", TRANSLATE, ("run/target.spm",), "no SentencePiece model",
         write("run/target.spm", b"garbage")),
    Case("configuration garbage", TRANSLATE, ("run/config.yaml",), "no valid YAML", write("run/config.yaml", "a: [")),
    Case("no text", "translate run --input absent.en", ("absent.en",), "no input file"),
    Case("text is no UTF-8", "translate run --device cpu", ("standard input, line 1", "UTF-8"), "iconv",
         stdin=b"caf\xe9\n"),
    Case("output below a file", f"{TRANSLATE} --output run.yaml/new", ("cannot write run.yaml/new",), "choose another"),
    Case("disk full", f"{TRANSLATE} --output /dev/full", ("write /dev/full", "No space left"), "make room"),
    Case("output is input", f"{TRANSLATE} --output valid.en", ("valid.en",), "choose another output"),
    Case("too many to average", f"{TRANSLATE} --average 9", ("9 snapshots",), "run has 3"),
    Case("no number to average", f"{TRANSLATE} --average ²", ("safetensors in ²",), "give a run directory"),
    Case("a long number to average", f"{TRANSLATE} --average {'9' * 5000}", ("999",), "too long"),
    Case("penalty is infinite", f"{TRANSLATE} --length-penalty inf", ("--length-penalty",), "not a finite number"),
    Case("penalty overflows", f"{TRANSLATE} --length-penalty 400", ("length penalty 400",), "give 18.8 at most"),
    Case("evaluate: penalty overflows", "evaluate run --length-penalty 400", ("length penalty 400",), "at most"),
    Case("threads beyond C", f"{TRANSLATE} --threads {10**10}", ("--threads",), "1<=x<=1024"),
    Case("a long path", f"translate {'a' * 300}", ("aaa",), "too long"),
    Case("evaluate: too many samples", f"evaluate valid.en valid.de --system train.en --samples {10**9}",
         ("--samples",), "2<=x<=1000000"),
    Case("evaluate: no seed", "evaluate valid.de valid.de --system valid.en --samples 10", ("SACREBLEU_SEED='abc'",),
         "whole number", environment={"SACREBLEU_SEED": "abc"}),
    Case("greedy and beam", f"{TRANSLATE} --greedy --beam 4", ("--beam 4",), "--greedy is --beam 1"),
    Case("translate without GPU", "translate run --input valid.en --device cuda", ("device cuda",), "device cpu"),
    Case("evaluate: no run", "evaluate absent", ("absent does not exist",), "or a run directory"),
    Case("evaluate: corpus moved", "evaluate run --device cpu", ("gone", "is not here"), "--data DIR",
         change("run/config.yaml", lambda c: c.replace(b"path: corpus", b"path: gone"))),
    Case("evaluate: no such text", "evaluate run --split test --data no-valid", ("no-valid", "no test text"), "--test"),
    Case("evaluate: all of a part", f"evaluate {BEST} --all", (BEST,), "--all needs a run directory"),
    Case("evaluate: state is garbage", "evaluate run --all", (f"{BEST}/state.json is damaged",), "remove",
         write(f"{BEST}/state.json", "{}")),
    Case("evaluate: scores are garbage", "evaluate run --device cpu", ("evaluation-valid.jsonl: line 1",), "remove",
         write("run/evaluation-valid.jsonl", "garbage\n")),
    Case("evaluate: unequal lines", "evaluate train.en valid.de", ("train.en has", "the reference has"), "lines"),
    Case("evaluate: no such score", "evaluate valid.en valid.de --metrics bluer", ("'bluer'",), "choose from bleu"),
]  # fmt: skip

LAUNCHING = [
    Case("launch: no --", "launch -n 2 train run.yaml", ("`--`",), "hpcasync launch -n 3 -- train"),
    Case("launch: no command", "launch -n 2 --", ("`--`",), "hpcasync launch -n 3 -- train"),
    Case("launch: unknown command", "launch -n 2 -- trian run.yaml", ("'trian'",), "did you mean train?"),
    Case("launch: no ranks", "launch -n 0 -- train run.yaml", ("-n", "0"), "x>=1"),
    Case("launch: how many ranks", "launch -- train run.yaml", ("-n",), "Missing option"),
    Case("launch: inside a job", "launch -n 2 -- train run.yaml", ("rank 0 of 2",), "leave out",
         environment={"PMI_RANK": "0", "PMI_SIZE": "2"}),
    Case("slurm: no time", "slurm render run.yaml --time soon", ("'soon'",), "HOURS:MINUTES:SECONDS"),
    Case("slurm: unknown key", "slurm render run.yaml sed=3", ("unknown key sed",), "did you mean seed?"),
    Case("slurm: no cluster", "slurm submit run.yaml", ("no sinfo on PATH",), "`hpcasync slurm render`",
         environment={"PATH": "/nowhere"}),
    Case("unknown command", "trian run.yaml", ("'trian'",), "No such command"),
]  # fmt: skip

ENVIRONMENT = [
    setting("run below a file", "run_dir=run.yaml/runs", "cannot write run.yaml/runs", cure="set run_dir"),
    setting("run cannot be", "run_dir=/proc/runs", "cannot write /proc/runs", cure="set run_dir"),
    Case("run is there", "train run.yaml", ("runs/x-sync-seed1 holds a run",), "--overwrite",
         write("runs/x-sync-seed1/config.yaml", "x")),
    Case("something else is there", "train run.yaml --overwrite", ("runs/x-sync-seed1 is not empty",), "choose another",
         write("runs/x-sync-seed1/thesis.tex", "x")),
    Case("nothing to resume", "train run.yaml --resume", ("runs/x-sync-seed1 holds no run",), "leave --resume out"),
    Case("nothing saved", "train run.yaml --resume", ("runs/x-sync-seed1", "no complete checkpoint"), "--overwrite",
         write("runs/x-sync-seed1/config.yaml", "x")),
    Case("srun of another MPI", "train run.yaml", ("SLURM_STEP_NUM_TASKS=4", "has 1"), "hpcasync launch",
         environment={"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}),
    Case("mpirun of another MPI", "train run.yaml", ("PMI_SIZE=4", "has 1"), "hpcasync launch",
         environment={"PMI_SIZE": "4", "PMI_RANK": "0"}),
]  # fmt: skip

CASES = {
    f"{kind}: {case.name}": case
    for kind, cases in {
        "configuration": CONFIGURATION,
        "corpus": CORPORA,
        "data": PREPARING,
        "model": MODELS,
        "launch": LAUNCHING,
        "environment": ENVIRONMENT,
    }.items()
    for case in cases
}


@pytest.fixture(scope="module")
def without_valid(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus without held-out text, and no training run at all."""
    directory = tmp_path_factory.mktemp("without-valid") / "corpus"
    text = tiny_run.corpus.parent
    options = PrepareOptions(source_model=tiny_run.corpus / "source.spm", target_model=tiny_run.corpus / "target.spm")
    prepare(text / "train.en", text / "train.de", directory, options)
    return directory


@pytest.fixture
def place(tmp_path: Path, tiny_run: TinyRun, without_valid: Path) -> Path:
    """A user's directory: text, a corpus, another one without held-out text, a configuration, a trained run."""
    shutil.copytree(tiny_run.corpus, tmp_path / "corpus")
    shutil.copytree(without_valid, tmp_path / "no-valid")
    shutil.copytree(tiny_run.run_dir, tmp_path / "run")
    change("run/config.yaml", lambda text: text.replace(str(tiny_run.corpus).encode(), b"corpus"))(tmp_path)
    for name in ("train", "valid"):
        for language in ("en", "de"):
            shutil.copy(tiny_run.corpus.parent / f"{name}.{language}", tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_there_are_sixty_cases_at_least() -> None:
    assert len(CASES) >= 60
    assert len(CASES) == sum(map(len, (CONFIGURATION, CORPORA, PREPARING, MODELS, LAUNCHING, ENVIRONMENT)))


@pytest.mark.parametrize("name", CASES)
def test_is_refused_with_one_message(name: str, commands: ForkedCommands, place: Path) -> None:
    case = CASES[name]
    case.prepare(place)
    before = digest_of(place)
    done = commands(
        *shlex.split(case.arguments),
        cwd=place,
        environment=case.environment,
        stdin=case.stdin,
        timeout=PATIENCE_SECONDS,
    )
    check_refusal(done.returncode, done.stderr, case.says, case.cure)
    assert done.cpu_seconds < MOST_CPU_SECONDS
    assert digest_of(place) == before, "a refusal changes nothing"
