"""A training iteration of TGAN as its users would write it in plain PyTorch: what tgan_fast is measured against.

All begin with the same weights, draw the same latents and compute the iteration of tgan_fast/reference.py with its
networks, without singular value clipping, which is called by itself. Each class adds something to the one before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from benchmarks import harness
from tgan_fast import reference
from tgan_fast.cuda_graph import capture
from tgan_fast.models.layout import to_channels_last_

# Names of plain PyTorch in training as in sampling.
NOTEBOOK, NOTEBOOK_FP32, TUNED, IN_GRAPH = "notebook", "notebook fp32", "tuned eager", "tuned, CUDA graph"
# Eager PyTorch in the same arithmetic, twice whose error is allowed.
SAME_ARITHMETIC = {"fp32": NOTEBOOK_FP32, "tf32": NOTEBOOK, "bf16": TUNED}
LEARNING_RATE = 5e-5
LATENT_DIM = 100
SEED = 0  # of the latents
# Iterations before a CUDA graph, in which libraries are loaded and algorithms chosen, or torch.compile compiles.
WARM_UP = 3
# The number of an iteration after which the reference does not clip.
NO_CLIPPING = 1


class Start(NamedTuple):
    """The weights, width and device with which all contenders begin."""

    generator: dict[str, torch.Tensor]
    discriminator: dict[str, torch.Tensor]
    width: float
    device: str

    @classmethod
    def random(cls, device: str, width: float = 1.0) -> "Start":
        """Return the weights of an untrained run."""
        torch.manual_seed(0)
        networks = reference.Generator(width, LATENT_DIM), reference.Discriminator(width)
        return cls(*(network.state_dict() for network in networks), width, device)

    def networks(self, dtype: torch.dtype = torch.float32) -> tuple[reference.Generator, reference.Discriminator]:
        """Return new networks of the reference."""
        networks = reference.Generator(self.width, LATENT_DIM), reference.Discriminator(self.width)
        for network, state in zip(networks, self[:2], strict=True):
            network.load_state_dict(state)
        return tuple(network.to(self.device, dtype) for network in networks)


@contextmanager
def cudnn_for(precision: str, chooses_algorithms: bool) -> Iterator[None]:
    """Let cuDNN compute as a contender's users have it; matrix products are float32, PyTorch's default."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    cudnn.conv.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    cudnn.benchmark = chooses_algorithms
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark = before


class Notebook:
    """The reference's iteration as it is, in PyTorch's default arithmetic: TF32 in a GPU's convolutions."""

    precision = "tf32"
    memory_format = torch.contiguous_format  # of the videos that a call takes
    _chooses_algorithms = False

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        self.generator, self.discriminator = start.networks(dtype)
        self.optimizers = reference.make_optimizers(self.generator, self.discriminator, LEARNING_RATE)
        self.precision = "fp32" if start.device == "cpu" else self.precision
        self._device, self._dtype = start.device, dtype
        self._random = torch.Generator(start.device).manual_seed(SEED)

    def prepare(self, real: torch.Tensor) -> None:
        """Do once what batches like `real` need; weights, optimizers and random numbers stay as they are."""

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one iteration on videos [N, 3, 16, 64, 64] in [-1, 1]; return the losses of both networks, D's first."""
        with self._arithmetic():
            return self._iterate(real, *self._latents(len(real)))

    def constrain(self) -> None:
        """Clip singular values with torch.linalg.svd, as after every fifth iteration."""
        reference.constrain(self.discriminator)

    def _iterate(self, *inputs):
        return reference.training_iteration(self.generator, self.discriminator, *self.optimizers, *inputs, NO_CLIPPING)

    def _latents(self, count):
        latents = [torch.empty(count, LATENT_DIM, device=self._device) for _ in range(2)]
        return [z.uniform_(-1, 1, generator=self._random).to(self._dtype) for z in latents]

    def _arithmetic(self):
        return cudnn_for(self.precision, self._chooses_algorithms)


class StrictNotebook(Notebook):
    """The same in float32."""

    precision = "fp32"


class WithoutWaste(Notebook):
    """No gradients through the generator in the discriminator's step, none of D's weights in the generator's."""

    def _iterate(self, real, z_discriminator, z_generator):
        loss_discriminator = self._discriminator_loss(real, z_discriminator)
        _descend(loss_discriminator, self.optimizers[1])
        self.discriminator.requires_grad_(False)
        loss_generator = self._generator_loss(z_generator)
        self.discriminator.requires_grad_(True)
        _descend(loss_generator, self.optimizers[0])
        return loss_discriminator.detach(), loss_generator.detach()

    def _discriminator_loss(self, real, z):
        with self._autocast():
            score_real = self.discriminator(real).mean()
            with torch.no_grad():
                fake = self.generator(z)
            return self.discriminator(fake).mean() - score_real

    def _generator_loss(self, z):
        with self._autocast():
            return -self.discriminator(self.generator(z)).mean()

    def _autocast(self):
        return torch.autocast(self._device, torch.bfloat16, enabled=self.precision == "bf16")


def _descend(loss, optimizer):
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


class Tuned(WithoutWaste):
    """Channels-last, bfloat16 autocast on a GPU, cuDNN's fastest algorithms, RMSprop in a few launches."""

    precision = "bf16"
    memory_format = torch.channels_last_3d
    _chooses_algorithms = True

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        options = {"lr": LEARNING_RATE, "foreach": True, "capturable": start.device == "cuda"}
        networks = to_channels_last_(self.generator), to_channels_last_(self.discriminator)
        self.optimizers = [torch.optim.RMSprop(network.parameters(), **options) for network in networks]

    def warm_up(self, real: torch.Tensor) -> None:
        """Iterate; restore weights, optimizers and random numbers in place."""
        tensors = [*self.generator.state_dict().values(), *self.discriminator.state_dict().values()]
        before = [tensor.clone() for tensor in tensors]
        with self._arithmetic():
            for _ in range(WARM_UP):
                self._iterate(real, *self._latents(len(real)))
        torch._foreach_copy_(tensors, before)
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                torch._foreach_zero_(list(state.values()))
        self._random.manual_seed(SEED)


class TunedInGraph(Tuned):
    """The whole iteration as one CUDA graph, for batches of one size."""

    def prepare(self, real: torch.Tensor) -> None:
        self._inputs = [real.clone(), *self._latents(len(real))]
        with harness.side_stream("cuda"), self._arithmetic():
            self.warm_up(real)
            self._graph, self._losses = capture(lambda: self._iterate(*self._inputs), torch.cuda.current_stream())

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As for the others; the next call overwrites what this one returns."""
        torch._foreach_copy_(self._inputs, [real, *self._latents(len(real))])
        self._graph.replay()
        return self._losses


class Compiled(Tuned):
    """Both losses through torch.compile, which tunes its kernels and makes CUDA graphs; the optimizers as they are."""

    _mode = "max-autotune"
    prepare = Tuned.warm_up

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        losses = super()._discriminator_loss, super()._generator_loss
        self._compiled = [torch.compile(loss, mode=self._mode, dynamic=False) for loss in losses]

    def _iterate(self, *inputs):
        # What a graph returned is gone once it runs again.
        return tuple(loss.clone() for loss in super()._iterate(*inputs))

    def _discriminator_loss(self, real, z):
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled[0](real, z)

    def _generator_loss(self, z):
        # The discriminator's gradients are used up, and its loss is small enough to be kept.
        return self._compiled[1](z)


class CompiledQuickly(Compiled):
    """The same without tuning."""

    _mode = "reduce-overhead"
