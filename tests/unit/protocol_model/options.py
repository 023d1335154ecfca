"""What is explored."""

from dataclasses import dataclass, replace

from hpcasync.choices import PullPolicy, StalenessPolicy


@dataclass(frozen=True)
class Options:
    """Size of the model, and which mistakes are seeded into it.

    Attributes:
        num_tickets: batches of the corpus, hence most pushes of all workers together.
        deaths: workers that may die, each at any point.
        may_stop: the coordinator may end training at any point.
        rejected: pushes (worker, sequence) whose gradient is not finite.
        limit, policy: what is done about stale gradients.
        far: servers on another node than the workers, which are sent their shards.
        survives: the others go on without workers that die, and do what those had begun. A pull is one step then: it is
            taken apart where nobody survives.
        fresh_updates: updates of the fresh start.
        num_local: most batches in a push, where workers are survived.
        in_place: gradients are computed where servers read them.
        spare: gradients of a worker that are being computed or pushed, where they are computed in place.
        ahead: in place, the next gradient is begun before one is pushed (`exchange.overlap`).
        reads_idle: servers read slots while they have nothing else to do.
        streams: vectors, slots and buffers are on GPUs, which do what they have been asked for at any later moment.
        hosts: workers and servers are dealt to so many in turn, and gradients of a host are summed there. In place
            then, and a pull is one step.
        bugs: names of seeded mistakes.
    """

    num_workers: int = 2
    num_servers: int = 2
    num_tickets: int = 3
    num_slots: int = 2
    pushes_per_update: int = 2
    pull: PullPolicy = "latest"
    fresh_updates: int = 0
    may_stop: bool = False
    deaths: int = 0
    rejected: frozenset[tuple[int, int]] = frozenset()
    limit: int | None = None
    policy: StalenessPolicy = "wait"
    far: frozenset[int] = frozenset()
    survives: bool = False
    num_local: int = 1
    in_place: bool = False
    spare: int = 1
    ahead: bool = False
    reads_idle: bool = False
    streams: bool = False
    hosts: int = 1
    bugs: frozenset[str] = frozenset()

    @property
    def num_gradients(self) -> int:
        """Gradients of a worker that servers can read, in slots or in place."""
        return self.num_slots + self.spare if self.in_place else self.num_slots

    def num_tokens(self, worker: int, sequence: int) -> int:
        """Target tokens in the record of a push."""
        return 0 if (worker, sequence) in self.rejected else 1


# Vectors, slots and buffers on GPUs, whose streams do what they were asked for later.
STREAMS = Options(num_servers=1, num_tickets=2, pushes_per_update=1, streams=True)
ALONE = replace(STREAMS, num_workers=1, num_tickets=3)
# A host's gradients are summed there before they leave it.
HOSTS = Options(num_tickets=2, pushes_per_update=1, in_place=True, hosts=2)
IN_TURN = replace(HOSTS, pull="applied")
# Workers that die are survived; their batches are done by the others.
SURVIVED = replace(Options(), survives=True, deaths=1, num_servers=1, num_tickets=2, pull="handled")
