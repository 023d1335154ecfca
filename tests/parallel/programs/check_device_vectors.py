"""Vectors on a GPU, and the server's shard: workers pull and push, rejected gradients in between.

    mpirun -n 3 python -m mpi4py check_device_vectors.py cpu|cuda none|push fp32|bf16 mpi|mapped

With `mpi` they travel by way of the host; `cpu` then takes vectors of the CPU for ones of a device, so that the same
copies are made. With `mapped` gradients are computed where servers read them. Every version is one number.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from mpi4py import MPI

from hpcasync.choices import GradientFormat, WindowKind
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.transport.link import LinkOptions
from hpcasync.ps.worker.bucketed_push import GradientStream
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters

NUM_UPDATES = 40
RATE = 2.0**-4


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


def work(client: Client, module: torch.nn.Module, flat: FlatParameters, overlap: str) -> None:
    """The gradient of the sum of all parameters is 1 everywhere."""
    with ThreadPoolExecutor(1) as executor:
        stream = GradientStream(client, flat, executor) if overlap == "push" else None
        while not client.should_stop():
            version = client.pull(flat.parameters)
            lowest, highest = torch.aminmax(flat.parameters)
            assert lowest == highest == -RATE * version, (version, lowest, highest)
            ticket = client.draw()
            flat.gradient.zero_()
            if stream is not None:
                stream.begin()
            torch.stack([parameter.sum() for parameter in module.parameters()]).sum().backward()  # type: ignore[no-untyped-call]
            record = PushRecord(version, 0 if ticket % 5 == 3 else 1, 0.0, 0, 0.0, (ticket,))
            is_pushed = client.push(flat.gradient, record) if stream is None else stream.end(record).result()
            if not (is_pushed and client.wait()):
                break
    client.finish()


def main(device: str, overlap: str, gradients: GradientFormat, window: WindowKind) -> None:
    torch.set_num_threads(1)
    if device == "cpu" and window == "mpi":
        Client.reaches = lambda self, vector: False  # type: ignore[method-assign]
    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    flat = FlatParameters(module.to(device))
    options, server_device = (
        EngineOptions(pushes_per_update=2, clip_norm=1e6, link=LinkOptions(gradients=gradients, window=window)),
        torch.device(device),
    )
    engine = Engine(MPI.COMM_WORLD, flat.parameters, sgd, options, server_device=server_device)
    observer = MinimalObserver(RATE, NUM_UPDATES)
    if engine.is_server:
        engine.serve(observer, observer)
    else:
        if window == "mapped":
            engine.client.place_gradients(flat)
        engine.start()
        work(engine.client, module, flat, overlap)
    engine.close()
    if engine.is_coordinator:
        final = observer.final
        assert final is not None and final.min() == final.max() == -RATE * NUM_UPDATES
        assert engine.counts.num_dropped >= NUM_UPDATES // 5
        print("device vectors passed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])  # type: ignore[arg-type]
