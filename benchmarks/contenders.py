"""Training iterations in plain PyTorch, as users would write them: the contenders that tgan_fast is compared with.

All begin with the same weights, draw the same latents and compute the iteration of tgan_fast/reference.py with its
networks, without singular value clipping, which is called separately. Each class extends the previous one.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch

from tgan_fast import reference
from tgan_fast.cuda_graph import Replayed
from tgan_fast.models.layout import to_channels_last_

# Names of contenders in plain PyTorch, for training and sampling.
NOTEBOOK, NOTEBOOK_FP32, TUNED, IN_GRAPH = "notebook", "notebook fp32", "tuned eager", "tuned, CUDA graph"
# Eager PyTorch in the same precision; twice its error is allowed.
SAME_ARITHMETIC = {"fp32": NOTEBOOK_FP32, "tf32": NOTEBOOK, "bf16": TUNED}
LEARNING_RATE = 5e-5
CLIP_INTERVAL = 5  # every fifth iteration clips
LATENT_DIM = 100
SEED = 0  # of the latents


class Start(NamedTuple):
    """Networks on the CPU that all contenders start from, their width, and the device of the contenders."""

    generator: reference.Generator
    discriminator: reference.Discriminator
    width: float
    device: str

    @classmethod
    def random(cls, device: str, width: float = 1.0) -> "Start":
        """Return the networks of an untrained run."""
        torch.manual_seed(0)
        return cls(reference.Generator(width, LATENT_DIM), reference.Discriminator(width), width, device)


@contextmanager
def cudnn_for(precision: str, chooses_algorithms: bool) -> Iterator[None]:
    """Set cuDNN's options as users of a contender would; matrix products stay in float32, PyTorch's default."""
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    cudnn.conv.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    cudnn.benchmark = chooses_algorithms
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark = before


class Notebook:
    """Iteration of the reference in PyTorch's default arithmetic: TF32 in a GPU's convolutions."""

    precision = "tf32"
    memory_format = torch.contiguous_format  # memory format of a call's videos
    iteration, clip_interval = 1, CLIP_INTERVAL  # this iteration does not clip
    _chooses_algorithms = False

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        self.generator, self.discriminator = (copy.deepcopy(network).to(start.device, dtype) for network in start[:2])
        self.optimizers = reference.make_optimizers(self.generator, self.discriminator, LEARNING_RATE)
        self.precision = "fp32" if start.device == "cpu" else self.precision
        self._device, self._dtype = start.device, dtype
        self._random = torch.Generator(start.device).manual_seed(SEED)

    def __call__(self, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one iteration on videos [N, 3, 16, 64, 64] in [-1, 1], and return both losses, D's first."""
        with cudnn_for(self.precision, self._chooses_algorithms):
            return self._iterate(real, *self._latents(len(real)))

    def _iterate(self, *inputs):
        inputs = *self.optimizers, *inputs, self.iteration, self.clip_interval
        return reference.training_iteration(self.generator, self.discriminator, *inputs)

    def _latents(self, count):
        latents = [torch.empty(count, LATENT_DIM, device=self._device) for _ in range(2)]
        return [z.uniform_(-1, 1, generator=self._random).to(self._dtype) for z in latents]


class StrictNotebook(Notebook):
    """Iteration of the reference in float32."""

    precision = "fp32"


class WithoutWaste(Notebook):
    """Notebook that skips unused gradients: of G in D's step, and of D's weights in G's step."""

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
    """Contender with channels-last, bfloat16 autocast on a GPU, cuDNN's fastest algorithms, and foreach RMSprop."""

    precision = "bf16"
    memory_format = torch.channels_last_3d
    _chooses_algorithms = True

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        options = {"lr": LEARNING_RATE, "foreach": True, "capturable": start.device == "cuda"}
        networks = to_channels_last_(self.generator), to_channels_last_(self.discriminator)
        self.optimizers = [torch.optim.RMSprop(network.parameters(), **options) for network in networks]


class TunedInGraph(Tuned):
    """Tuned iteration as one CUDA graph, for batches of one size. The next call overwrites the losses."""

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        self._replayed, self._inputs = Replayed(torch.device(start.device), required=True), None

    def _iterate(self, *inputs):
        self._inputs = self._inputs or [tensor.clone() for tensor in inputs]
        torch._foreach_copy_(self._inputs, inputs)
        return self._replayed(partial(super()._iterate, *self._inputs))


class Compiled(Tuned):
    """Tuned iteration with both losses in torch.compile, which tunes kernels and captures CUDA graphs."""

    _mode = "max-autotune"

    def __init__(self, start: Start, dtype: torch.dtype = torch.float32):
        super().__init__(start, dtype)
        self._discriminator_loss = torch.compile(self._discriminator_loss, mode=self._mode, dynamic=False)
        self._generator_loss = torch.compile(self._generator_loss, mode=self._mode, dynamic=False)

    def _iterate(self, *inputs):
        # The discriminator's loss and gradients are used before the generator's graph, of the same step, runs.
        torch.compiler.cudagraph_mark_step_begin()
        # A graph's next run overwrites the tensors that it returned.
        return tuple(loss.clone() for loss in super()._iterate(*inputs))


class CompiledQuickly(Compiled):
    """Compiled iteration without tuning of kernels."""

    _mode = "reduce-overhead"
