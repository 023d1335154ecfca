"""An interrupted simulation goes on bit for bit as if nothing had happened."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
from simulator import JITTER, Simulator, assert_same, losses, records, summary

from hpcasync.config.schema import Config
from hpcasync.data.digests import file_digest
from hpcasync.errors import UserError
from hpcasync.exit_codes import PREEMPTED
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.runs.files import read_state, write_state
from hpcasync.train.loop.step import GradientStep
from hpcasync.train.supervise import stop_signals

OF_THE_END = ("staleness", "gradients_pushed", "gradients_applied", "gradients_dropped", "wall_seconds", "num_batches")


def interrupt_after(number: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes once so many updates have been recorded."""
    monkeypatch.setattr(stop_signals, "received", lambda: "SIGUSR1" if len(records(config)) >= number else "")


def interrupted(
    simulate: Simulator, monkeypatch: pytest.MonkeyPatch, after: int, options: dict[str, Any], **more: Any
) -> Config:
    """A run that a signal ends after an update, and that then goes on to the end."""
    config = simulate.config(**more)
    with monkeypatch.context() as patch:
        interrupt_after(after, config, patch)
        assert simulate.run(config, **options) == PREEMPTED
    assert summary(config)["num_updates"] == after
    assert simulate.run(config, **options, resume=True) == 0
    return config


def assert_same_end(one: Config, other: Config) -> None:
    assert_same(one, other)
    for key in OF_THE_END:
        assert summary(one)[key] == summary(other)[key], key
    # The rate of a resumed run begins anew.
    for record in (before := records(one)) + (after := records(other)):
        del record["target_tokens_per_second"]
    assert before == after


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {"mode": "sync"}),
        ({"forced": {"updates": 3, "warmup": 4}}, {"mode": "sync"}),
        ({}, {"mode": "async"}),
        ({}, {"mode": "async-local", "accumulate": {"local": 2}, "exchange": {"pull": "latest", "slots": 1}}),
        ({}, {"mode": "async-global", "accumulate": {"global": 2}, "roles": {"servers": 2}}),
        ({}, {"mode": "async-global", "accumulate": {"global": 4}, "exchange": {"overlap": "push"}}),
        ({}, {"mode": "async", "exchange": {"overlap": "full", "parameters": "bf16"}}),
        (
            {},
            {
                "mode": "async",
                "exchange": {"gradients": "topk", "topk": 0.1},
                "roles": {"servers": 3},
                "optimizer": {"name": "muon"},
            },
        ),
        ({}, {"mode": "async", "staleness": {"limit": 2, "compensation": 0.5, "lookahead": 0.0}}),
        ({}, {"mode": "async", "staleness": {"limit": 1, "policy": "drop"}}),
        ({}, {"mode": "async", "staleness": {"lookahead": 1.0}, "roles": {"servers": 2}}),
        (
            {},
            {
                "mode": "async-global",
                "accumulate": {"global": 2},
                "roles": {"servers": 3},
                "exchange": {"host_sums": True, "gradients": "bf16"},
            },
        ),
    ],
    ids=lambda value: ",".join(f"{key}={part}" for key, part in value.items()).replace(" ", "") if value else "",
)
def test_as_if_nothing_had_happened(
    simulate: Simulator, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], more: dict[str, Any]
) -> None:
    options = {**options, "cluster": JITTER}
    assert_same_end(simulate(**options, **more), interrupted(simulate, monkeypatch, 5, options, **more))


def test_twice_and_before_the_first_update(simulate: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    config = simulate.config(mode="async")
    for after in (0, 3, 6):
        with monkeypatch.context() as patch:
            interrupt_after(after, config, patch)
            assert simulate.run(config, cluster=JITTER, resume=after > 0) == PREEMPTED
        assert summary(config)["num_updates"] == after
    assert simulate.run(config, cluster=JITTER, resume=True) == 0
    assert_same_end(simulate(mode="async", cluster=JITTER), config)


@pytest.mark.parametrize("mode", ["sync", "async-global"])
def test_gradients_that_were_rejected(simulate: Simulator, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """They are in no update, which a replay without gradients must know."""
    run = GradientStep.run

    def reject_some(step: GradientStep, draw: Callable[[], int | None], **rest: Any) -> PushRecord:
        done = run(step, draw, **rest)
        return replace(done, num_tokens=0) if {2, 9, 14} & set(done.tickets) else done

    monkeypatch.setattr(GradientStep, "run", reject_some)
    more: dict[str, Any] = {"mode": mode, "accumulate": {"global": 1 if mode == "sync" else 3}}
    whole = simulate(cluster=JITTER, **more)
    assert summary(whole)["gradients_dropped"] >= 3
    assert_same_end(whole, interrupted(simulate, monkeypatch, 4, {"cluster": JITTER}, **more))


@pytest.mark.parametrize("gradients", ["fp32", "topk"])
def test_a_later_end(simulate: Simulator, gradients: str) -> None:
    """The first end comes between two updates, with gradients computed that are dropped then, and computed again."""
    exchange = {"gradients": gradients, "topk": 0.1}
    more: dict[str, Any] = {"mode": "async-global", "accumulate": {"global": 4}, "exchange": exchange}
    whole = simulate(cluster=JITTER, **more)
    moments = [record["wall_seconds"] for record in records(whole)]
    end = moments[3] + 0.9 * (moments[4] - moments[3])
    config = simulate.config(stop={"seconds": end}, **more)
    assert simulate.run(config, cluster=JITTER) == 0
    assert summary(config)["num_updates"] == 4 and summary(config)["gradients_dropped"] > 0
    longer = config.model_copy(update={"stop": whole.stop})
    assert simulate.run(longer, cluster=JITTER, resume=True) == 0
    assert_same_end(whole, longer)


def test_the_fresh_start_is_as_long_as_it_was_to_be(simulate: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    """At most a quarter of the run, whose length is another when it goes on."""
    more: dict[str, Any] = {"mode": "async-global", "staleness": {"fresh_start": 0.6}}
    whole = simulate(cluster=JITTER, stop={"updates": 12}, **more)
    moments = [record["wall_seconds"] for record in records(whole)]
    config = simulate.config(stop={"seconds": moments[5]}, **more)
    assert simulate.run(config, cluster=JITTER) == 0
    shorter = config.model_copy(update={"stop": simulate.config(stop={"updates": 8}).stop})
    assert shorter.fresh_updates(3, 100, 60) == 2
    capsys.readouterr()
    assert simulate.run(shorter, cluster=JITTER, resume=True) == 0
    assert "fresh start: workers wait for the first 3 updates" in capsys.readouterr().out
    assert losses(shorter) == losses(whole)[:8]
    stale = [[record["staleness_mean"] for record in records(run)] for run in (shorter, whole)]
    assert stale[0] == stale[1][:8]


def test_timelines_are_those_of_the_whole_run(simulate: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"mode": "async", "logging": {"every": 1, "tensorboard": False, "timeline": True}}
    whole = simulate(cluster=JITTER, **more)
    parts = interrupted(simulate, monkeypatch, 4, {"cluster": JITTER}, **more)
    files = sorted(path.name for path in whole.output_dir.glob("timeline-*.jsonl"))
    assert len(files) == 4
    for name in files:
        assert (whole.output_dir / name).read_text() == (parts.output_dir / name).read_text()


def test_patience_goes_on_counting(simulate: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = {"score": True, "every": 2, "beam": 1, "max_sentences": 2}
    more: dict[str, Any] = {"mode": "async", "stop": {"patience": 2}, "optimizer": {"learning_rate": 1e-30}}
    config = interrupted(simulate, monkeypatch, 3, {}, validation=validation, **more)
    assert summary(config)["num_updates"] == 6
    assert [record["is_best"] for record in records(config, "validation")] == [True, False, False]


def test_what_cannot_go_on(simulate: Simulator) -> None:
    def refusal(config: Config, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            simulate.run(config, resume=True, **options)
        return str(caught.value)

    assert "holds no run" in refusal(simulate.config())
    config = simulate(mode="async", workers=2)
    assert "was simulated with cluster.workers=2, now 3" in refusal(config)
    changed = config.model_copy(update={"staleness": config.staleness.model_copy(update={"limit": 3})})
    assert "was simulated with staleness.limit=None, now 3" in refusal(changed, workers=2)
    (config.output_dir / "cluster.yaml").unlink()
    assert "was not simulated: go on with `hpcasync train --resume`" in refusal(config, workers=2)


def test_the_checkpoint_of_a_real_run_is_refused(simulate: Simulator) -> None:
    """Real runs write none of what a simulation goes on from: here it is taken out."""
    config = simulate(mode="sync")
    (shard,) = sorted(config.output_dir.glob("checkpoints/u*/shard-*"))
    tensors = safetensors.torch.load_file(shard)
    kept = {key: value for key, value in tensors.items() if not key.startswith("simulation.")}
    assert len(kept) < len(tensors)
    safetensors.torch.save_file(kept, shard, metadata={"start": "0", "stop": str(kept["parameters"].numel())})
    values = read_state(shard.parent)
    values["files"][shard.name]["sha256"] = file_digest(shard)
    write_state(shard.parent, values)
    with pytest.raises(UserError, match="was not written by `hpcasync simulate`"):
        simulate.run(config, resume=True)
