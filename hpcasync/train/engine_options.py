"""The engine's options by the configuration, whatever is trained."""

from hpcasync.config.schema import RunConfig
from hpcasync.ps.engine import EngineOptions
from hpcasync.ps.transport.link import LinkOptions


def engine_options(
    config: RunConfig, num_workers: int, *, server_threads: int, fresh_updates: int, may_lose_workers: bool = False
) -> EngineOptions:
    """What a job of so many workers runs with; the length of its fresh start depends on what is trained."""
    exchange, staleness = config.exchange, config.staleness
    return EngineOptions(
        num_servers=config.num_servers,
        server_threads=server_threads,
        pushes_per_update=config.pushes_per_update(num_workers),
        pull=config.pull,
        clip_norm=config.optimizer.clip_norm,
        ema_decay=config.optimizer.ema_decay,
        staleness_limit=staleness.limit,
        staleness_policy=staleness.policy,
        compensation=staleness.compensation,
        lookahead=staleness.lookahead,
        fresh_updates=fresh_updates,
        may_lose_workers=may_lose_workers,
        link=LinkOptions(
            num_slots=exchange.slots,
            max_tickets=config.accumulate.local,
            is_overlapped=exchange.overlap != "none",
            gradients=exchange.gradients,
            topk=exchange.topk,
            parameters=exchange.parameters,
            window=exchange.window,
            host_sums=exchange.host_sums,
        ),
    )
