"""Mistakes of programs that join a job: each is noticed, with what it is told."""

from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAMS = Path(__file__).parent / "programs"

EXPECTED = {
    "misspelt-setting": "unknown key staleness.lookahed: did you mean staleness.lookahead?",
    "setting-of-translations": "ask job.should_validate in the program",
    "start-in-warm-ups": "for a program set fresh_updates",
    "no-end": "give epochs, updates or seconds",
    "share-twice": "a job trains once",
    "no-zero-grad": "optimizer.step() without optimizer.zero_grad() since the last one",
    "step-without-a-batch": "optimizer.step() without a batch of the job's loop",
    "too-many-batches": "say hpcasync.join(…, accumulate=2)",
    "no-step": "3 batch(es) since the last optimizer.step()",
    "clipped-on-the-way": "the gradient was changed after backward()",
    "scaled-on-the-way": "a GradScaler, which changes the gradient after backward()",
    "backward-twice": "backward() once more before optimizer.step()",
    "late-weight": "job.weigh() after backward()",
    "sums-of-servers": "sums_during_backward is of mode sync, and mode is async-global",
    "late-score": "job.record() outside of the job's loop",
    "late-loss": "before optimizer.step()",
    "no-weight": "job.weigh(0): give the number of terms",
    "foreign-parameter": "the optimizer has 2 parameter(s) that are not the model's",
    "forgotten-parameter": "bias is trainable, but in no group of the optimizer",
    "used-optimizer": "the optimizer has made steps already",
    "mixed-types": "1.weight is float64, and the engine trains float32",
    "lbfgs": "LBFGS cannot make a step on a vector's gradient",
    "adafactor": "the optimizer steps an element by what is in other elements",
    "plateau": "ReduceLROnPlateau is no scheduler that counts steps",
    "scheduler-too-short": "the scheduler has no step 3",
    "scheduler-of-epochs": "scheduler.step() after 3 steps of the optimizer",
    "scheduler-of-steps": "say hpcasync.join(…, schedule_per='step')",
    "rate-by-hand": "the program has set lr of the optimizer's group 0 to 0.01 (it was 0.1)",
    "scheduler-of-another-optimizer": "the StepLR is of another optimizer than the one that joins",
    "forgotten-step": "has dropped 3 gradient(s) in a row for which there was no optimizer.step(): is it missing?",
    "forgotten-step-for-long": "has dropped 50 gradient(s) in a row",
    "other-order": "the model is a SGD, not a torch Module",
    "no-values": "weight is on the meta device, and has no values",
    "two-jobs": "hpcasync.join a second time",
    "no-loader": "takes its batches from a torch DataLoader, not from a list",
    "no-epochs": "job.epochs(loader, 0): give the number of epochs",
    "several-losses": "job.log(…) takes a number, not a Tensor of shape (4,)",
    "several-scores": "job.record(accuracy=…) takes a number, not a Tensor of shape (3,)",
    "stream-by-epochs": "nobody knows how long a stream's epoch is",
    "empty-stream": "the stream gives no batch of 4 in epoch 0",
    "no-batches": "its dataset has 3 samples",
    "another-model": "was written with another model",
    "snapshot-of-another-model": "holds bias of shape (2,), which the model has not",
    "no-snapshot": "is no snapshot, and no run directory that holds one",
}


def test_mistakes_of_one_rank(mpirun: MpiRunner, tmp_path: Path) -> None:
    job = mpirun.python(1, PROGRAMS / "joined_mistakes.py", tmp_path)
    said = dict(line.split(": ", maxsplit=1) for line in job.stdout.splitlines() if line.partition(": ")[0] in EXPECTED)
    assert said.keys() == EXPECTED.keys()
    for mistake, words in EXPECTED.items():
        assert words in said[mistake], mistake


DIFFERENT = """
import torch, hpcasync
from mpi4py import MPI
from torch.utils.data import DataLoader, TensorDataset
rank = MPI.COMM_WORLD.rank
model = torch.nn.Linear(3, 2 + {model})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(TensorDataset(torch.ones(12 + {data}, 3)), 4)
job = hpcasync.join(model, optimizer, run={run!r}, seed=1 + {seed})
for (batch,) in job.share(loader, epochs=1):
    model(batch).sum().backward()
    {failing}
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(
    ("differs", "words"),
    [
        ({"model": "rank"}, "the model differs between ranks"),
        ({"data": "8 * rank"}, "the order of the batches differs between ranks"),
        ({"seed": "rank"}, "what hpcasync.join was given differs between ranks"),
        ({"failing": "1 / (2 - rank)"}, "ZeroDivisionError"),
    ],
)
def test_what_differs_on_a_rank_ends_all(
    mpirun: MpiRunner, tmp_path: Path, differs: dict[str, str], words: str
) -> None:
    """Under plain python, too: nobody waits for a rank that has ended."""
    program = tmp_path / "program.py"
    same = {"model": "0", "data": "0", "seed": "0", "failing": "pass"}
    program.write_text(DIFFERENT.format(**{**same, **differs}, run=str(tmp_path / "run")))
    job = mpirun.program(3 if "failing" in differs else 2, program, exit_code=None)
    assert job.returncode != 0
    assert job.stderr.count(words) == 1, job.stderr
