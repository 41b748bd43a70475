"""A training iteration of TGAN as its users would write it in plain PyTorch: what tgan_fast is measured against.

All begin with the same weights, draw the same latents and compute the iteration of tgan_fast/reference.py with its
networks, without singular value clipping, which is called by itself. From class to class something is added.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from benchmarks import harness
from tgan_fast import reference
from tgan_fast.cuda_graph import capture

# Names of plain PyTorch in training as in sampling.
NOTEBOOK, NOTEBOOK_FP32, TUNED, IN_GRAPH = "notebook", "notebook fp32", "tuned eager", "tuned, CUDA graph"
# Eager PyTorch in the same arithmetic, twice whose error is allowed.
SAME_ARITHMETIC = {"fp32": NOTEBOOK_FP32, "tf32": NOTEBOOK, "bf16": TUNED}
LEARNING_RATE = 5e-5
LATENT_DIM = 100
SEED = 0  # of the latents
# Calls before a CUDA graph, in which libraries are loaded and convolution algorithms chosen; and those in which
# torch.compile compiles, warms up its graphs and records them.
WARM_UP = 3
# The number of an iteration after which the reference does not clip.
NO_CLIPPING = 1


class Start(NamedTuple):
    """What all contenders begin with."""

    generator: dict[str, torch.Tensor]
    discriminator: dict[str, torch.Tensor]
    width: float
    device: str

    @classmethod
    def random(cls, device: str, width: float = 1.0) -> "Start":
        """The weights of an untrained run."""
        torch.manual_seed(0)
        networks = reference.Generator(width, LATENT_DIM), reference.Discriminator(width)
        return cls(*(network.state_dict() for network in networks), width, device)

    def networks(self, dtype: torch.dtype = torch.float32) -> tuple[reference.Generator, reference.Discriminator]:
        """New ones of the reference."""
        networks = reference.Generator(self.width, LATENT_DIM), reference.Discriminator(self.width)
        for network, state in zip(networks, (self.generator, self.discriminator), strict=True):
            network.load_state_dict(state)
            network.to(self.device, dtype)
        return networks


@contextmanager
def cudnn_for(precision: str, chooses_algorithms: bool) -> Iterator[None]:
    """Inside, cuDNN computes as a contender's users have it; matrix products are float32, PyTorch's default."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    cudnn.conv.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    cudnn.benchmark = chooses_algorithms
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark = before


class Notebook:
    """The reference's iteration as it is, in PyTorch's default arithmetic: TF32 in convolutions.

    Args:
        start: weights and device.
        dtype: of the networks and of the videos.

    Attributes:
        precision: of convolutions on a GPU, in the words of `tgan_fast.precision`.
        memory_format: of the videos that a call takes.
    """

    precision = "tf32"
    memory_format = torch.contiguous_format
    _chooses_algorithms = False

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        self.generator, self.discriminator = start.networks(dtype)
        self.optimizers = reference.make_optimizers(self.generator, self.discriminator, LEARNING_RATE)
        self._device, self._dtype = start.device, dtype
        self._random = torch.Generator(start.device).manual_seed(SEED)

    def prepare(self, real: torch.Tensor) -> None:
        """Do once what has to be done for batches like `real`; weights and optimisers are afterwards as before."""

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One iteration on videos [N, 3, 16, 64, 64] in [-1, 1]; returns the discriminator's and generator's loss."""
        with self._arithmetic():
            return self._iterate(real, *self._latents(len(real)))

    def constrain(self) -> None:
        """Singular value clipping with torch.linalg.svd, after every fifth iteration."""
        reference.constrain(self.discriminator)

    def _iterate(self, real, z_discriminator, z_generator):
        networks = self.generator, self.discriminator
        return reference.training_iteration(
            *networks, *self.optimizers, real, z_discriminator, z_generator, NO_CLIPPING
        )

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
        generator_optimizer, discriminator_optimizer = self.optimizers
        loss_discriminator = self._discriminator_loss(real, z_discriminator)
        _descend(loss_discriminator, discriminator_optimizer)
        self.discriminator.requires_grad_(False)
        loss_generator = self._generator_loss(z_generator)
        self.discriminator.requires_grad_(True)
        _descend(loss_generator, generator_optimizer)
        return loss_discriminator.detach(), loss_generator.detach()

    def _discriminator_loss(self, real, z):
        score_real = self.discriminator(real).mean()
        with torch.no_grad():
            fake = self.generator(z)
        return self.discriminator(fake).mean() - score_real

    def _generator_loss(self, z):
        return -self.discriminator(self.generator(z)).mean()


class Tuned(WithoutWaste):
    """Channels-last, bfloat16 autocast on a GPU, cuDNN's fastest algorithms, RMSprop in a few launches."""

    precision = "bf16"
    memory_format = torch.channels_last_3d
    _chooses_algorithms = True

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        options = {"lr": LEARNING_RATE, "foreach": True, "capturable": start.device == "cuda"}
        networks = self.generator, self.discriminator
        for network in networks:
            _to_channels_last(network)
        self.optimizers = [torch.optim.RMSprop(network.parameters(), **options) for network in networks]

    def _discriminator_loss(self, real, z):
        with self._autocast():
            return super()._discriminator_loss(real, z)

    def _generator_loss(self, z):
        with self._autocast():
            return super()._generator_loss(z)

    def _autocast(self):
        return torch.autocast(self._device, torch.bfloat16, enabled=self._device == "cuda")

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Afterwards weights, optimisers and random numbers are what they were at the beginning, in their places."""
        tensors = [t for network in (self.generator, self.discriminator) for t in network.state_dict().values()]
        before = [tensor.clone() for tensor in tensors]
        yield
        torch._foreach_copy_(tensors, before)
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        self._random.manual_seed(SEED)


class TunedInGraph(Tuned):
    """The whole iteration as one CUDA graph, for batches of one size."""

    def prepare(self, real: torch.Tensor) -> None:
        self._inputs = [real.clone(), *self._latents(len(real))]
        with self._undone(), self._arithmetic(), harness.side_stream("cuda"):
            for _ in range(WARM_UP):
                self._iterate(*self._inputs)
            self._graph, self._losses = capture(lambda: self._iterate(*self._inputs), torch.cuda.current_stream())

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As for the others; the next call overwrites what this one returns."""
        torch._foreach_copy_(self._inputs, [real, *self._latents(len(real))])
        self._graph.replay()
        return self._losses


class Compiled(Tuned):
    """Both losses through torch.compile, which tunes its kernels and makes CUDA graphs; the optimisers as they are."""

    _mode = "max-autotune"

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        losses = super()._discriminator_loss, super()._generator_loss
        self._compiled = [torch.compile(loss, mode=self._mode, dynamic=False) for loss in losses]

    def prepare(self, real: torch.Tensor) -> None:
        with self._undone(), self._arithmetic():
            for _ in range(WARM_UP):
                self._iterate(real, *self._latents(len(real)))

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


def _to_channels_last(network):
    """`Module.to(memory_format=…)` refuses networks that have both 2D and 3D convolutions."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def _descend(loss, optimizer):
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
