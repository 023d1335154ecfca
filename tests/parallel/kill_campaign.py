"""Kills a training job at random moments, restarts it, and checks what is left each time.

`python tests/parallel/kill_campaign.py --kills 100` trains on a small generated corpus: every round a random process of
the job (a worker, a server, the coordinator, mpirun) is killed with SIGKILL at a random moment, some of them while a
checkpoint is being written, and the run is resumed.
After each death the checkpoints that look complete must load and add up. In the end the run must have covered the same
batches as one that nobody killed, and be as good.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

import psutil
import yaml
from running_job import RunningJob, StartJob
from tiny_training import CONFIG, TinyCorpus, make_tiny_corpus

from hpcasync.comm.shards import Shard
from hpcasync.complete_files import list_complete
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.runs.checkpoints import read_shard
from hpcasync.runs.files import read_state

NUM_RANKS = 4
VICTIMS = ("coordinator", "server", "worker", "mpirun")
VICTIM_RANKS = {"coordinator": 0, "server": 1, "worker": 3}
# When a process is killed: a few updates after a checkpoint, while one is written, or before there is a new one.
MOMENTS = {"training": 0.55, "checkpoint": 0.35, "start": 0.1}
MOST_UPDATES_PER_KILL = 30
# No machine is fast enough to be done before it is killed; the end is set when all have been.
ENDLESS = "stop={updates: 1000000}"
# An epoch has 11 updates.
EPOCHS_PER_KILL = 4
LATEST_SECONDS_AT_START = 2.0
SECONDS_OF_AN_UPDATE = 0.02


@dataclass
class Campaign:
    """What happened.

    Attributes:
        killed: victims by kind.
        moments: of the kills, by kind.
        num_cut_off: kills that left a checkpoint half written.
        num_checks: checkpoints that were read.
        losses: of the run that was killed, and of the one that was not: the mean of the last updates.
    """

    killed: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    num_cut_off: int = 0
    num_checks: int = 0
    losses: tuple[float, float] = (0.0, 0.0)


def run_campaign(
    directory: Path, corpus: TinyCorpus, *, num_kills: int, seed: int, start_job: StartJob = RunningJob
) -> Campaign:
    """Train once in peace and once with `num_kills` deaths; raises AssertionError where something is wrong."""
    generator = random.Random(seed)
    config = _write_config(directory, corpus)
    campaign = Campaign()
    overrides = ("roles.servers=2", "accumulate.global=2", "checkpoint={every: 2, keep: 2}")
    killed, log = ("name=killed", *overrides), directory / "killed.log"
    for number in range(num_kills):
        victim = VICTIMS[number % len(VICTIMS)] if number < len(VICTIMS) else generator.choice(VICTIMS)
        with start_job(NUM_RANKS, config, *killed, ENDLESS, *_flags(config), log=log) as job:
            [moment] = generator.choices(list(MOMENTS), list(MOMENTS.values()))
            _kill(job, victim, moment, generator)
        campaign.killed[victim] += 1
        campaign.moments[moment] += 1
        campaign.num_cut_off += bool(_partial_checkpoints(job))
        campaign.num_checks += _check(job.run_dir)
        print(f"{number + 1}: {victim} ({moment}), newest {job.newest or 'none'}", flush=True)
    num_epochs = max(EPOCHS_PER_KILL * (num_kills + 1), _num_epochs_begun(job, corpus) + 1)
    end, timeout = f"stop={{epochs: {num_epochs}}}", 240.0 + 60 * num_kills
    with start_job(NUM_RANKS, config, *killed, end, *_flags(config), log=log) as job:
        assert job.wait(timeout) == 0, job.output
    with start_job(NUM_RANKS, config, "name=peace", *overrides, end, log=directory / "peace.log") as peace:
        assert peace.wait(timeout) == 0, peace.output
    campaign.num_checks += _check(job.run_dir)
    _compare(peace, job)
    campaign.losses = _final_loss(job), _final_loss(peace)
    assert abs(campaign.losses[0] - campaign.losses[1]) < 0.15 * campaign.losses[1], campaign.losses
    return campaign


def _kill(job: RunningJob, victim: str, moment: str, generator: random.Random) -> None:
    """Kill a process of the job and wait for the job's end."""
    find = job.mpirun if victim == "mpirun" else lambda: job.rank(VICTIM_RANKS[victim])
    if moment == "start":
        job.wait_until(lambda: _is_there(find), f"a {victim}")
        time.sleep(generator.random() * LATEST_SECONDS_AT_START)
        process = find()
    else:
        # A run that is killed before it gets anywhere, again and again, would not get anywhere.
        due = _num_updates(job.newest) + generator.randint(1, MOST_UPDATES_PER_KILL)
        job.wait_until(lambda: _num_updates(job.newest) >= due, f"update {due}")
        process = find()
        if moment == "checkpoint":
            job.wait_until(lambda: _partial_checkpoints(job), "a checkpoint that is being written", pause=0.0)
        else:
            time.sleep(generator.random() * SECONDS_OF_AN_UPDATE)
    process.kill()
    assert job.wait() != 0, job.output


def _partial_checkpoints(job: RunningJob) -> list[Path]:
    return list((job.run_dir / "checkpoints").glob("*.partial"))


def _num_updates(checkpoint: str) -> int:
    return int(checkpoint[1:] or 0)


def _num_epochs_begun(job: RunningJob, corpus: TinyCorpus) -> int:
    """As of the newest checkpoint."""
    if not job.newest:
        return 0
    low = read_state(job.run_dir / "checkpoints" / job.newest)["tickets"]["low"]
    return -(-int(low) // corpus.plan(job.config).num_batches())


def _is_there(find: Callable[[], psutil.Process]) -> bool:
    try:
        return find().is_running()
    except (KeyError, ValueError, psutil.Error):
        return False


def _flags(config: Path) -> list[str]:
    run_dir = Path(yaml.safe_load(config.read_text())["run_dir"]) / "killed-async-global-seed1"
    if not (run_dir / "config.yaml").exists():
        return []
    return ["--resume" if list_complete(run_dir / "checkpoints") else "--overwrite"]


def _check(run_dir: Path) -> int:
    """Load every checkpoint that looks complete; returns their number."""
    complete = list_complete(run_dir / "checkpoints")
    for path in complete:
        state = read_state(path)
        counters, gradients = state["counters"], state["gradients"]
        applied = TicketLedger(state["tickets"]["low"], state["tickets"]["above"])
        assert applied.low + len(applied.above) == counters["num_batches"], path
        assert counters["num_updates"] == int(path.name[1:]) and gradients["num_applied"] == counters["num_steps"], path
        assert sum(gradients["staleness"].values()) == gradients["num_applied"], path
        num_elements = sum(_num_elements(path, index) for index in range(state["num_shards"]))
        tensors = read_shard(path, state["num_shards"], Shard(0, num_elements))
        assert all(bool(values.isfinite().all()) for values in tensors.values()), path
    return len(complete)


def _num_elements(checkpoint: Path, index: int) -> int:
    from safetensors import safe_open

    num_shards = read_state(checkpoint)["num_shards"]
    with safe_open(checkpoint / f"shard-{index:05d}-of-{num_shards:05d}.safetensors", framework="pt") as file:
        return int(file.get_slice("parameters").get_shape()[0])


def _compare(peace: RunningJob, killed: RunningJob) -> None:
    """The same batches, each once; nothing lost in counting."""
    expected, found = (read_state(job.run_dir / "checkpoints" / job.newest) for job in (peace, killed))
    assert found["tickets"] == expected["tickets"]
    for key in ("num_batches", "target_tokens", "source_tokens"):
        assert found["counters"][key] == expected["counters"][key], key


def _final_loss(job: RunningJob) -> float:
    losses = [record["loss"] for record in job.records("update")][-8:]
    return float(sum(losses)) / len(losses)


def _write_config(directory: Path, corpus: TinyCorpus) -> Path:
    path = directory / "config.yaml"
    values = {**CONFIG, "run_dir": str(directory / "runs"), "data": {**CONFIG["data"], "path": str(corpus.path)}}
    path.write_text(yaml.safe_dump({**values, "logging": {"every": 5, "tensorboard": False}}))
    return path


def main() -> None:
    """Run a campaign of any length and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpcasync-kills-") as name:
        directory = Path(name)
        corpus = make_tiny_corpus(directory)
        campaign = run_campaign(directory, corpus, num_kills=arguments.kills, seed=arguments.seed)
    killed, moments = (
        ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
        for kinds in (campaign.killed, campaign.moments)
    )
    print(f"killed: {killed}; moments: {moments}; {campaign.num_cut_off} left a checkpoint half written")
    print(f"{campaign.num_checks} checkpoints read, all whole")
    print(f"final training loss {campaign.losses[0]:.3f}, without kills {campaign.losses[1]:.3f}")


if __name__ == "__main__":
    main()
