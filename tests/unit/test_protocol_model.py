"""The protocol in every interleaving of its atomic steps; test_protocol_mistakes.py has what it finds of mistakes.

Invariants: no push is lost or doubled; versions go up by one; a pull is one version of all shards; a slot is not
written again before it is consumed; every shard applies the same groups; nobody waits for ever; every run ends. Where
workers are survived: each batch is done once, whoever dies at whichever step. On GPUs: what is summed is the gradient
that was announced, whole; what is computed with is one version, whole, until the gradient is there. Where hosts sum:
each shard's sum is that of the group.
"""

from dataclasses import replace

import pytest
from protocol_model import Options, Report, check
from protocol_model.options import ALONE, HOSTS, IN_TURN, STREAMS, SURVIVED

SMALL = [
    Options(num_tickets=3),
    Options(num_tickets=3, num_slots=1),
    Options(num_tickets=2, may_stop=True),
    Options(num_tickets=2, deaths=1),
    Options(num_tickets=2, pushes_per_update=1, num_servers=1, may_stop=True, deaths=1),
    Options(num_tickets=3, num_servers=1, may_stop=True, rejected=frozenset({(0, 1), (1, 2)})),
    Options(num_tickets=4, pull="applied"),
    Options(num_tickets=3, pull="applied", may_stop=True, deaths=1),
    Options(num_tickets=3, pull="applied", may_stop=True, rejected=frozenset({(0, 1)}), pushes_per_update=3),
    Options(num_tickets=3, pull="handled", deaths=1),
    Options(num_tickets=3, pull="handled", may_stop=True, rejected=frozenset({(0, 1)}), pushes_per_update=1),
    Options(num_tickets=4, num_servers=1, fresh_updates=2),
    Options(num_tickets=3, num_servers=1, fresh_updates=1, may_stop=True, deaths=1),
    Options(num_tickets=4, num_servers=1, pull="handled", fresh_updates=2),
    Options(num_tickets=4, num_servers=1, pull="added", fresh_updates=1),
    Options(num_tickets=3, pull="added", deaths=1),
    Options(num_tickets=3, pull="added", may_stop=True, rejected=frozenset({(0, 1)}), pushes_per_update=1),
    Options(num_tickets=4, num_servers=1, pull="added", limit=0, pushes_per_update=1),
    Options(num_tickets=3, num_servers=1, pull="added", limit=1, pushes_per_update=1, may_stop=True, deaths=1),
    Options(num_tickets=4, num_servers=1, pull="handled", limit=0, pushes_per_update=1),
    Options(num_tickets=3, num_servers=1, pull="handled", limit=1, pushes_per_update=1, may_stop=True, deaths=1),
    Options(num_tickets=4, pull="applied", limit=0, pushes_per_update=1, rejected=frozenset({(0, 1)})),
    Options(num_tickets=4, num_servers=1, pull="applied", limit=0, may_stop=True),
    Options(num_tickets=4, num_servers=1, limit=0, policy="drop", pushes_per_update=1),
    Options(num_tickets=1, num_servers=3),
    Options(num_tickets=2, reads_idle=True),
    Options(num_tickets=2, num_servers=1, may_stop=True, in_place=True, reads_idle=True),
    Options(num_tickets=3, num_servers=1, pushes_per_update=1, far=frozenset({0})),
    Options(num_tickets=2, pushes_per_update=1, far=frozenset({1})),
    Options(num_tickets=2, far=frozenset({0, 1}), deaths=1, pull="handled"),
    Options(num_tickets=4, num_workers=1, pushes_per_update=1, num_slots=1, may_stop=True),
    Options(num_tickets=3, num_slots=1, in_place=True, rejected=frozenset({(0, 1)}), num_servers=1),
    Options(num_tickets=2, in_place=True, may_stop=True, deaths=1, num_servers=1),
    Options(num_tickets=4, num_workers=1, pushes_per_update=1, num_slots=1, may_stop=True, in_place=True),
    Options(num_tickets=3, pull="handled", in_place=True, deaths=1, num_slots=1, num_servers=1),
    Options(num_tickets=3, pull="added", in_place=True, deaths=1, num_slots=1, num_servers=1),
    Options(num_tickets=4, num_workers=1, num_slots=1, in_place=True, ahead=True),
    Options(num_tickets=4, num_workers=1, num_slots=1, may_stop=True, in_place=True, ahead=True, spare=2),
    Options(num_tickets=3, num_servers=1, num_slots=1, may_stop=True, in_place=True, ahead=True, spare=2),
]
LARGE = [
    Options(num_tickets=3, may_stop=True, deaths=1),
    Options(num_tickets=4),
    Options(num_tickets=2, pushes_per_update=1, may_stop=True, deaths=1),
    Options(num_tickets=3, pushes_per_update=1),
    Options(num_tickets=2, num_servers=3),
    Options(num_tickets=2, num_workers=3, num_servers=1, may_stop=True),
    Options(num_tickets=6, pull="applied", may_stop=True, deaths=2),
    Options(num_tickets=4, pull="handled", may_stop=True, deaths=1),
    Options(num_tickets=4, fresh_updates=1),
    Options(num_tickets=4, pull="added", may_stop=True, deaths=1),
    Options(num_tickets=5, num_servers=1, fresh_updates=2, may_stop=True),
    Options(num_tickets=3, pushes_per_update=1, far=frozenset({0, 1})),
    Options(num_tickets=3, pushes_per_update=1, far=frozenset({1})),
    Options(num_tickets=2, pushes_per_update=1, far=frozenset({1}), may_stop=True),
    Options(num_tickets=2, in_place=True, may_stop=True, deaths=1),
    Options(num_tickets=3, in_place=True, num_slots=1),
    Options(num_tickets=2, in_place=True, num_slots=1, ahead=True, may_stop=True),
    Options(num_tickets=3, in_place=True, num_slots=1, ahead=True, spare=2, num_servers=1, deaths=1),
]
SMALL_STREAMS = [
    STREAMS,
    replace(STREAMS, num_tickets=1, num_servers=2),
    replace(STREAMS, num_tickets=1, in_place=True, may_stop=True, deaths=1),
    replace(STREAMS, in_place=True, pushes_per_update=2),
    replace(STREAMS, num_tickets=1, rejected=frozenset({(0, 1)}), pull="handled"),
    replace(STREAMS, in_place=True, pushes_per_update=2, pull="added"),
    replace(ALONE, num_servers=2, in_place=True),
    replace(ALONE, num_servers=2, num_tickets=2, far=frozenset({1})),
    replace(ALONE, num_tickets=4, pushes_per_update=3, reads_idle=True, rejected=frozenset({(0, 2)})),
    replace(ALONE, num_slots=1, in_place=True, ahead=True, rejected=frozenset({(0, 2)})),
    replace(ALONE, in_place=True, ahead=True, spare=2, may_stop=True),
]
LARGE_STREAMS = [
    replace(STREAMS, num_servers=2),
    replace(STREAMS, num_servers=2, in_place=True),
    replace(STREAMS, num_tickets=3, pushes_per_update=2, num_slots=1),
    replace(STREAMS, in_place=True, may_stop=True, deaths=1),
    replace(STREAMS, pull="applied", may_stop=True),
    replace(STREAMS, in_place=True, num_slots=1, ahead=True, spare=2),
    replace(ALONE, num_servers=2, num_tickets=4),
    replace(ALONE, num_servers=2, far=frozenset({0, 1})),
    replace(ALONE, num_servers=2, num_tickets=4, in_place=True, ahead=True, spare=2, may_stop=True),
]
SMALL_HOSTS = [
    IN_TURN,
    replace(IN_TURN, streams=True),
    replace(HOSTS, pushes_per_update=2),
    replace(HOSTS, num_tickets=1, may_stop=True),
]
LARGE_HOSTS = [
    HOSTS,
    replace(HOSTS, streams=True),
    replace(HOSTS, num_tickets=3, pushes_per_update=2, num_slots=1),
    replace(HOSTS, pushes_per_update=2, may_stop=True, deaths=1),
    replace(HOSTS, num_tickets=3, pushes_per_update=2, pull="applied", rejected=frozenset({(1, 1)})),
    replace(HOSTS, num_tickets=1, num_servers=3),
    replace(HOSTS, num_tickets=1, num_servers=3, num_workers=3, hosts=3),
    replace(HOSTS, num_workers=1, num_servers=3, num_tickets=3),
]
SMALL_SURVIVED = [
    SURVIVED,
    replace(SURVIVED, num_local=2),
    replace(SURVIVED, pull="applied"),
    replace(SURVIVED, pull="added"),
    replace(SURVIVED, pull="latest", pushes_per_update=1, num_tickets=1),
    replace(SURVIVED, rejected=frozenset({(0, 1), (1, 1)})),
    replace(SURVIVED, may_stop=True, num_tickets=1),
    replace(SURVIVED, deaths=2, num_tickets=1),
    replace(SURVIVED, num_servers=2, num_tickets=1),
    replace(SURVIVED, num_workers=1, num_slots=1, num_tickets=3),
    replace(SURVIVED, in_place=True, num_slots=1, num_local=2, num_tickets=1),
]
LARGE_SURVIVED = [
    replace(SURVIVED, num_tickets=3),
    replace(SURVIVED, num_tickets=3, num_local=2),
    replace(SURVIVED, pull="latest"),
    replace(SURVIVED, may_stop=True),
    replace(SURVIVED, deaths=2),
    replace(SURVIVED, num_servers=2),
    replace(SURVIVED, num_workers=3, num_tickets=1),
    replace(SURVIVED, num_workers=3, num_tickets=1, deaths=2),
    replace(SURVIVED, num_workers=3),
    replace(SURVIVED, num_workers=3, num_local=2),
]


def describe(options: Options) -> str:
    changed = [f"{key}={value}" for key, value in vars(options).items() if value != getattr(Options(), key)]
    return ",".join(changed) or "default"


@pytest.mark.parametrize("options", [*SMALL, *SMALL_SURVIVED, *SMALL_STREAMS, *SMALL_HOSTS], ids=describe)
def test_every_interleaving(options: Options) -> None:
    report = check(options)
    assert report.num_final > 0 and report.num_transitions > report.num_states > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [*LARGE, *LARGE_SURVIVED, *LARGE_STREAMS, *LARGE_HOSTS], ids=describe)
def test_every_interleaving_of_larger_jobs(options: Options) -> None:
    report = check(options)
    print(report)
    assert report.num_final > 0


def test_the_size_of_the_smallest_job_is_what_it_was() -> None:
    """A model that loses steps by accident would find nothing and be quick about it."""
    assert check(Options(num_tickets=1)) == Report(num_states=1002, num_transitions=2472, num_final=2)
