"""The tensors of one shard: parameters, summed gradient, optimizer state, averaged parameters.

Synchronous training holds one `ShardState` over the whole vector in every worker; a server holds its shard's.
"""

from collections.abc import Callable

import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.server import fused_apply
from hpcasync.ps.server.block_threads import BlockThreads, ThreadBlock
from hpcasync.ps.server.block_update import BlockUpdate
from hpcasync.ps.server.dealt_muon import Dealing, DealtMuon
from hpcasync.ps.server.muon import Muon
from hpcasync.ps.server.parameter_groups import Optimizers, cut_in_blocks, groups_of
from hpcasync.ps.server.stacked_muon import StackedMuon

# Vectors whose sum is elements [start, stop) of a gradient; they may lie where workers put them, and stay as they are.
GradientBlocks = Callable[[int, int], list[torch.Tensor]]

# Of a GPU, squared at a time in float64 where no kernel does it: the copy takes twice their memory.
_SQUARED_ELEMENTS = 1 << 26

# Elements stepped at a time: the block's arrays stay in cache between the sum, the step and the copy to the workers,
# and a server can serve MPI between blocks.
BLOCK_ELEMENTS = 1 << 19


class ShardState:
    """A shard with its optimizer, which works element by element (Adam, SGD, …; not LAMB), or steps a whole group.

    Args:
        optimizers: build the optimizer of a list of parameters, called once per block; or groups, each with its own.
        start: where the shard begins in the whole vector.
        ema_decay: decay of the averaged parameters per update; 0 for none.
        between_blocks: called between blocks of an update.
        fused: step by `fused_apply` where it can.
    """

    def __init__(
        self,
        parameters: torch.Tensor,
        optimizers: Optimizers,
        *,
        start: int = 0,
        ema_decay: float = 0.0,
        between_blocks: Callable[[], None] = lambda: None,
        threads: BlockThreads | None = None,
        fused: bool = True,
    ) -> None:
        assert parameters.dim() == 1 and parameters.dtype == torch.float32
        self.parameters = parameters
        self.ema = parameters.clone() if ema_decay else None
        self._ema_decay = ema_decay
        self._between_blocks = between_blocks
        # A GPU's blocks would wait for each other all the same, and each thread has scratch of a whole shard there.
        self.threads = BlockThreads() if threads is None or parameters.device.type != "cpu" else threads
        size, num_elements = parameters.numel(), block_elements(parameters)
        self._groups = groups_of(optimizers, start + size)
        self._bounds = cut_in_blocks(self._groups, start, size, num_elements)
        self._blocks = [torch.nn.Parameter(parameters[block.start : block.stop]) for block in self._bounds]
        self._optimizers = [
            self._groups[bounds.group].make_optimizer([block])
            for bounds, block in zip(self._bounds, self._blocks, strict=True)
        ]
        self._scratch = ThreadBlock(min(size, num_elements), parameters.device)
        self._dealt: DealtMuon | None = None
        self._matrices = {number: each for number, each in enumerate(self._optimizers) if isinstance(each, Muon)}
        self._stacked: StackedMuon | None = None
        if self._matrices and parameters.device.type != "cpu":
            self._stacked = StackedMuon({self._bounds[number].start: each for number, each in self._matrices.items()})
        self._singly = [n for n in range(len(self._blocks)) if self._stacked is None or n not in self._matrices]
        self._is_fused = fused and fused_apply.is_available(parameters.device)

    @property
    def averaged(self) -> torch.Tensor:
        """What snapshots hold: the averaged parameters, where there are some."""
        return (self.parameters if self.ema is None else self.ema).detach()

    @property
    def whole(self) -> Shard:
        """This state's vector as a shard that starts at zero."""
        return Shard(0, self.parameters.numel())

    def deal(self, dealing: Dealing) -> None:
        """From now on share Muon's iterations with ranks that hold the same, and make the same updates."""
        if self._stacked is not None:
            self._stacked.deal(dealing)
        elif self._matrices:
            self._dealt = DealtMuon(dealing, self._matrices)

    def apply(
        self,
        gradient: GradientBlocks,
        *,
        scale: float,
        learning_rate: float,
        version: int,
        publish: torch.Tensor | None = None,
        lookahead: float = 0.0,
    ) -> None:
        """Make one optimizer step.

        Args:
            gradient: gives the summed gradient, block by block; in order, but called by all threads.
            scale: factor on the gradient (one over the target tokens, times clipping).
            version: number of updates, this one included.
            publish: [size] where the new parameters are copied to, or None.
            lookahead: what is published lies so many steps like this one further on (`ps.protocol.lookahead`).
        """
        # A young average follows closely, as in TensorFlow's ExponentialMovingAverage(num_updates=…).
        decay = min(self._ema_decay, (1 + version) / (10 + version))
        settings = [group.settings(learning_rate, version) for group in self._groups]
        if self._dealt is not None:
            [whole] = gradient(0, self.parameters.numel())
            self._dealt.compute(lambda number: whole[self._bounds[number].start : self._bounds[number].stop] * scale)

        def set_up(index: int) -> torch.optim.Optimizer:
            for group in self._optimizers[index].param_groups:
                group.update(settings[self._bounds[index].group])
            return self._optimizers[index]

        def update_of(start: int, stop: int) -> BlockUpdate:
            return BlockUpdate(
                gradient(start, stop),
                scale,
                scratch=self._scratch.first(stop - start),
                average=None if self.ema is None else self.ema[start:stop],
                average_weight=1 - decay,
                published=None if publish is None else publish[start:stop],
                lookahead=lookahead,
            )

        def step(number: int) -> None:
            index = self._singly[number]
            block, optimizer = self._blocks[index], set_up(index)
            update = update_of(self._bounds[index].start, self._bounds[index].stop)
            if self._is_fused and fused_apply.can_make(update, optimizer, block):
                fused_apply.make(update, optimizer, block)
            else:
                update.make(optimizer, block)

        if self._stacked is not None:
            for index in self._matrices:
                set_up(index)
            self._stacked.make(update_of(0, self.parameters.numel()))
        self.threads.run(len(self._singly), step, self._between_blocks)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of everything needed to go on: [size] vectors by name, and scalars (such as Adam's step)."""
        tensors = {"parameters": self.parameters.detach().cpu().clone()}
        if self.ema is not None:
            tensors["ema"] = self.ema.cpu().clone()
        per_block = [optimizer.state[block] for optimizer, block in zip(self._optimizers, self._blocks, strict=True)]
        for key in dict.fromkeys(key for state in per_block for key in state):
            # Groups may keep different things: what one lacks is zero there, and not looked at.
            parts = [
                torch.as_tensor(state[key]).detach() if key in state else torch.zeros_like(block)
                for state, block in zip(per_block, self._blocks, strict=True)
            ]
            scalars = [part for part in parts if not part.dim()]
            tensors[f"optimizer.{key}"] = (scalars[0].clone() if scalars else torch.cat(parts)).cpu()
        return tensors

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `state_tensors`, in place.

        A checkpoint without an average (written with ema_decay 0) starts the average at its parameters.
        """
        self.parameters.copy_(tensors["parameters"])
        if self.ema is not None:
            self.ema.copy_(tensors.get("ema", tensors["parameters"]))
        saved = {
            key.removeprefix("optimizer."): value for key, value in tensors.items() if key.startswith("optimizer.")
        }
        if not saved:
            return  # saved before the first update
        of_others = saved.keys() - (Muon.STATE if self._matrices else ())
        for bounds, block, optimizer in zip(self._bounds, self._blocks, self._optimizers, strict=True):
            # No more than what it steps by: the rest would take memory, and be saved again as it was.
            kept = Muon.STATE if isinstance(optimizer, Muon) else of_others
            optimizer.state[block] = {
                key: (value[bounds.start : bounds.stop] if value.dim() else value).clone().to(block.device)
                for key, value in saved.items()
                if key in kept
            }


def block_elements(vector: torch.Tensor) -> int:
    """Elements stepped at a time: a GPU has no cache to keep a block in, and every block costs it the same launches."""
    return BLOCK_ELEMENTS if vector.device.type == "cpu" else max(1, vector.numel())


def blocks_of(vector: torch.Tensor) -> GradientBlocks:
    return lambda start, stop: [vector[start:stop]]


def squared_norm(vector: torch.Tensor) -> float:
    """Sum of squares of a vector, accumulated over blocks in float64; a GPU is waited for once."""
    is_fused = fused_apply.is_available(vector.device) and fused_apply.is_plain(vector, vector.device)
    if vector.device.type != "cpu":
        if is_fused:
            return fused_apply.sum_of_squares([vector])
        blocks = torch.split(vector, _SQUARED_ELEMENTS)
        norms = torch.stack([torch.linalg.vector_norm(block, dtype=torch.float64) for block in blocks])
        return float(norms.dot(norms))
    square = (
        (lambda block: fused_apply.sum_of_squares([block])) if is_fused else (lambda block: float(block.dot(block)))
    )
    return sum(map(square, torch.split(vector, BLOCK_ELEMENTS)), 0.0)
