"""What the batch scripts decide: resuming, signals, the environment. The scripts themselves run in tests/system."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpcasync.exit_codes import PREEMPTED
from hpcasync.slurm.requeue import flags_of_start, start_mark

SCRIPTS = Path(__file__).parents[2] / "slurm"
ALL_SCRIPTS = sorted(SCRIPTS.glob("*.sbatch"))
# Of a child: until the shell that has started it catches USR1 (10).
UNTIL_HEARD = "until ((16#$(sed -n 's/^SigCgt:.//p' /proc/$PPID/status) >> 9 & 1)); do sleep 0.02; done"


def run_bash(program: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "SLURM_JOB_ID": "7", **variables}
    program = f"source {shlex.quote(str(SCRIPTS / 'common.sh'))}; set -eu\n{program}"
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=240, env=environment)


class TestScripts:
    @pytest.mark.parametrize("path", ALL_SCRIPTS, ids=lambda path: path.stem)
    def test_is_bash_and_leaves_the_site_to_site_sh(self, path: Path) -> None:
        subprocess.run(["bash", "-n", str(path)], check=True)
        options = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
        names = [option.partition("=")[0] for option in options]
        assert {"--job-name", "--output", "--open-mode", "--requeue"} <= set(names)
        assert not {"--account", "--partition", "--qos", "--time", "--constraint", "--mem"} & set(names)

    def test_all_find_the_common_part_in_the_same_way(self) -> None:
        starts = {
            path.read_text().split("# sbatch runs a copy")[1].split("prepare_environment\n")[0] for path in ALL_SCRIPTS
        }
        assert len(ALL_SCRIPTS) == 6
        assert len(starts) == 1

    def test_a_job_without_hpcasync_says_where_to_put_it_right(self, tmp_path: Path) -> None:
        site = tmp_path / "site.sh"
        site.write_text("hpcasync_environment() { PATH=/usr/bin:/bin; }\n")
        done = run_bash("prepare_environment", HPCASYNC_SITE=str(site))
        assert done.returncode == 2
        assert "hpcasync is not on PATH of the job: say in slurm/site.sh" in done.stderr

    def test_steps_are_given_what_the_script_has(self) -> None:
        """Whatever `sbatch --export=NONE` has said of the user's own environment."""
        program = "prepare_environment; [[ -z ${SLURM_EXPORT_ENV+set} ]]"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = run_bash(program, PATH=path, SLURM_EXPORT_ENV="NONE", SLURM_JOB_NAME="x", SLURM_JOB_NODELIST="n[0-1]")
        assert done.returncode == 0
        assert re.fullmatch(r"hpcasync: \S+T\S+, job 7 \(x\) on n\[0-1\], start number 1\n", done.stderr)

    def test_an_active_environment_is_kept(self) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = run_bash('before=$PATH; prepare_environment; [[ $PATH == "$before" ]]', PATH=path)
        assert done.returncode == 0, done.stderr


class TestRequeue:
    """What train is told at the first and at later starts of a job."""

    @pytest.fixture
    def run_dir(self, tmp_path: Path) -> Path:
        return tmp_path / "runs" / "x-sync-seed1"

    def start(self, run_dir: Path, restarts: int, given: str = "") -> str:
        environment = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        return " ".join(flags_of_start(run_dir, given.split(), environment))

    def make_run(self, run_dir: Path, *checkpoints: str, age_seconds: float = -1) -> None:
        for name in checkpoints:
            (run_dir / "checkpoints" / name).mkdir(parents=True)
            (run_dir / "checkpoints" / name / "state.json").touch()
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").touch()
        at = time.time() - age_seconds
        os.utime(run_dir / "config.yaml", (at, at))

    @pytest.mark.parametrize("given", ["", "--overwrite", "--resume"])
    def test_the_first_start_does_as_it_is_told(self, run_dir: Path, given: str) -> None:
        self.make_run(run_dir, "u00000010")
        assert self.start(run_dir, 0, given) == given

    @pytest.mark.parametrize("given", ["", "--overwrite"])
    def test_goes_on_from_what_the_job_did_before(self, run_dir: Path, given: str) -> None:
        self.start(run_dir, 0, given)
        self.make_run(run_dir, "u00000010")
        assert self.start(run_dir, 1, given) == "--resume"
        assert self.start(run_dir, 2, given) == "--resume"

    def test_begins_again_without_a_complete_checkpoint(self, run_dir: Path) -> None:
        self.start(run_dir, 0)
        self.make_run(run_dir, "u00000010.partial")
        assert self.start(run_dir, 1) == "--overwrite"

    @pytest.mark.parametrize("given", ["", "--overwrite", "--resume"])
    def test_a_run_from_before_the_job_is_not_its_own(self, run_dir: Path, given: str) -> None:
        self.make_run(run_dir, "u00000010", age_seconds=60)
        self.start(run_dir, 0, given)
        assert self.start(run_dir, 1, given) == given

    def test_a_restart_whose_first_start_left_no_mark_is_a_first_start(self, run_dir: Path) -> None:
        self.make_run(run_dir, "u00000010")
        assert self.start(run_dir, 1, "--overwrite") == "--overwrite"


class TestPreemption:
    """`pass_signals`: a command that has saved and ended is put back into the queue."""

    def run(self, tmp_path: Path, command: str, *, requeue_code: int = 0) -> "subprocess.CompletedProcess[str]":
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f'#!/bin/sh\necho "scontrol $*"; exit {requeue_code}\n')
        scontrol.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return run_bash(f"pass_signals bash -c {shlex.quote(command)}", PATH=path)

    def test_the_exit_code_is_that_of_training(self) -> None:
        assert f"\nEXIT_PREEMPTED={PREEMPTED}\n" in (SCRIPTS / "common.sh").read_text()

    def test_a_preempted_job_is_requeued(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, f"exit {PREEMPTED}")
        assert (done.returncode, done.stdout) == (PREEMPTED, "scontrol requeue 7\n")

    @pytest.mark.parametrize(("end", "code"), [("kill -USR1 $$; sleep 9", 138), ("exit 250", 250)])
    def test_a_job_that_died_of_the_signal_is_requeued(self, tmp_path: Path, end: str, code: int) -> None:
        until_handed_on = "while ((n < 1)); do sleep 0.02; done"
        warn = f"{UNTIL_HEARD}; trap 'n=1' USR1; n=0; kill -USR1 $PPID; {until_handed_on}; trap - USR1"
        done = self.run(tmp_path, f"{warn}; {end}")
        assert (done.returncode, done.stdout) == (code, "scontrol requeue 7\n")

    @pytest.mark.parametrize("code", [0, 1, 86, 138, 250])
    def test_no_other_is(self, tmp_path: Path, code: int) -> None:
        done = self.run(tmp_path, f"exit {code}")
        assert (done.returncode, done.stdout) == (code, "")

    def test_a_job_that_may_not_be_requeued_says_what_to_do(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, f"exit {PREEMPTED}", requeue_code=1)
        assert done.returncode == PREEMPTED and "submit it again with --resume" in done.stderr

    @pytest.mark.parametrize("name", ["train-async", "train-sync", "train-hetero"])
    def test_training_is_warned(self, name: str) -> None:
        assert "#SBATCH --signal=B:USR1@120\n" in (SCRIPTS / f"{name}.sbatch").read_text()


class TestProgress:
    """`has_got_forward`: a job that its time limit stops before it gets anywhere is not queued for ever."""

    def start(self, tmp_path: Path, number: int, checkpoint: str = "") -> "subprocess.CompletedProcess[str]":
        """A start that is warned, and makes a checkpoint or none."""
        for name in ("scontrol", "squeue"):
            (tmp_path / name).write_text('#!/bin/sh\necho "$0 $*" | grep -o "scontrol .*"; exit 0\n')
            (tmp_path / name).chmod(0o755)
        run_dir = tmp_path / "runs" / "x-sync-seed1"
        saved = run_dir / "checkpoints" / checkpoint
        make = f"mkdir -p {saved}; touch {run_dir}/config.yaml {saved}/state.json; " if checkpoint else ""
        train = f"pass_signals bash -c '{make}exit {PREEMPTED}'"
        program = f"remove_old_marks; before=$(newest_checkpoint); {train}"
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(number)}
        flags_of_start(run_dir, [], environment)
        return run_bash(program, run_dir=str(run_dir), started=str(start_mark(run_dir, environment)), PATH=path)

    def marks(self, tmp_path: Path) -> list[str]:
        return [path.name for path in (tmp_path / "runs").glob(".*")]

    def test_two_starts_without_a_checkpoint_are_enough(self, tmp_path: Path) -> None:
        done = self.start(tmp_path, 0, "u00000010")
        assert (done.returncode, done.stdout) == (PREEMPTED, "scontrol requeue 7\n"), done.stderr
        done = self.start(tmp_path, 1)
        assert (done.returncode, done.stdout) == (PREEMPTED, "scontrol requeue 7\n")
        assert self.marks(tmp_path) == [".x-sync-seed1.job-7"]
        done = self.start(tmp_path, 2)
        assert (done.returncode, done.stdout) == (PREEMPTED, "")
        assert "two starts of job 7 have brought no new checkpoint" in done.stderr and "--time" in done.stderr
        assert self.marks(tmp_path) == []

    def test_a_checkpoint_in_between_counts(self, tmp_path: Path) -> None:
        for number, checkpoint in enumerate(["", "u00000010", "", "u00000020", ""]):
            assert self.start(tmp_path, number, checkpoint).stdout == "scontrol requeue 7\n"

    @pytest.mark.parametrize("code", [0, 2, 1])
    def test_no_mark_stays_of_a_job_that_has_ended(self, tmp_path: Path, code: int) -> None:
        program = f"remove_old_marks; before=; pass_signals bash -c 'exit {code}'"
        run_dir = tmp_path / "runs" / "x"
        flags_of_start(run_dir, [], {"SLURM_JOB_ID": "7"})
        started = str(start_mark(run_dir, {"SLURM_JOB_ID": "7"}))
        (run_dir.parent / ".x.job-3").touch()  # of a job that was cancelled
        (tmp_path / "squeue").write_text(
            "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n"
        )
        (tmp_path / "squeue").chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = run_bash(program, run_dir=str(run_dir), started=started, PATH=path)
        assert done.returncode == code, done.stderr
        assert self.marks(tmp_path) == []


class TestSignals:
    """`pass_signals`: bash alone would act on a signal only when its command has ended."""

    @pytest.mark.parametrize("code", [0, 3])
    def test_keeps_the_exit_code(self, code: int) -> None:
        assert run_bash(f"pass_signals bash -c 'exit {code}'").returncode == code

    def test_hands_every_usr1_on_and_waits_for_the_end(self, tmp_path: Path) -> None:
        ready, seen = tmp_path / "ready", tmp_path / "seen"
        count_two = "while ((n < 2)); do sleep 0.02; done; exit 5"
        child = f"n=0; trap 'n=$((n + 1)); echo $n >>{seen}' USR1; {UNTIL_HEARD}; touch {ready}; {count_two}"
        program = f"source {SCRIPTS}/common.sh; set -eu; pass_signals bash -c {shlex.quote(child)}"
        process = subprocess.Popen(["bash", "-c", program])
        try:
            self.wait_for(ready.exists)
            for count in (1, 2):
                process.send_signal(signal.SIGUSR1)
                self.wait_for(lambda count=count: seen.exists() and len(seen.read_text().split()) == count)
            assert process.wait(240) == 5
        finally:
            process.kill()

    def wait_for(self, condition: Any) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("devices", "given", "expected"),
    [([], {}, "^ucx"), (["mlx5_0"], {}, ""), ([], {"OMPI_MCA_osc": "rdma"}, "rdma")],
)
def test_one_sided_traffic_leaves_ucx_only_where_it_has_no_hardware(
    tmp_path: Path, devices: list[str], given: dict[str, str], expected: str
) -> None:
    for device in devices:
        (tmp_path / device).mkdir()
    script = 'set -eu; source slurm/site.sh; hpcasync_environment; printf %s "${OMPI_MCA_osc:-}"'
    environment = {"PATH": os.environ["PATH"], "HPCASYNC_ROOT": str(tmp_path), "HPCASYNC_FABRICS": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], env=environment | given, capture_output=True, text=True, cwd=SCRIPTS.parent, check=True
    )
    assert done.stdout == expected
