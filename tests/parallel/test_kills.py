"""A run whose processes are killed at random moments ends as one that was left in peace; see kill_campaign.py."""

from collections import Counter
from pathlib import Path

from kill_campaign import VICTIMS, run_campaign
from running_job import StartJob
from tiny_training import TinyCorpus


def test_a_run_survives_the_death_of_every_kind_of_process(
    tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob
) -> None:
    campaign = run_campaign(tmp_path, tiny_corpus, num_kills=len(VICTIMS), seed=1, start_job=start_job)
    assert campaign.killed == Counter(VICTIMS)
    assert campaign.num_checks >= 4
