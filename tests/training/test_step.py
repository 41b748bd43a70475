"""TrainingStep compared with the reference iteration, and its other promises."""

import contextlib
import copy
import functools
import math

import pytest
import torch
from support.gradients import Gradients
from support.lifetimes import dies_with_its_last_reference
from support.operations import RefusesHostCopies
from torch.utils.flop_counter import FlopCounterMode

from tgan_fast import VideoDiscriminator, VideoGenerator, reference
from tgan_fast.nn import BATCH_NORMS
from tgan_fast.ops.convolution.algorithms import DIRECT, TABLE
from tgan_fast.pixels import to_videos
from tgan_fast.training import TrainingStep
from tgan_fast.training.constraints import GradientPenalty
from tgan_fast.training.objectives import Vanilla
from tgan_fast.training.optimizers import Adam

WIDTH, LATENT, BATCH, ITERATIONS, RATE = 0.0625, 12, 4, 20, 5e-5


def references(dtype, device, width=WIDTH):
    torch.manual_seed(1)
    generator, discriminator = reference.Generator(width, LATENT, 3), reference.Discriminator(width, 3)
    return generator.to(device, dtype), discriminator.to(device, dtype)


def fast_step(dtype, device, width=WIDTH, **options):
    eager = references(dtype, device, width)
    networks = (VideoGenerator(width, LATENT, 3), VideoDiscriminator(width, 3))
    for network, other in zip(networks, eager, strict=True):
        network.to(device, dtype).load_state_dict(other.state_dict())
    return TrainingStep(*networks, **({"learning_rate": RATE, "seed": 7, "precision": "fp32"} | options))


def batches(dtype, device, count=ITERATIONS, seed=2):
    random = torch.Generator().manual_seed(seed)
    return [(torch.rand(BATCH, 3, 16, 64, 64, generator=random) * 2 - 1).to(device, dtype) for _ in range(count)]


def latents(device, seed=7):
    """Yield the latents that a TrainingStep with this seed draws, one batch after another."""
    random = torch.Generator(device).manual_seed(seed)
    while True:
        yield torch.rand(BATCH, LATENT, generator=random, device=device) * 2 - 1


def flat(state):
    return torch.cat([tensor.flatten().double().cpu() for tensor in state.values()])


@functools.cache
def trace_of_reference(dtype, device, count=ITERATIONS, seed=2):
    """Losses, gradients and final states after some iterations, with clipping in every fifth."""
    generator, discriminator = references(dtype, device)
    optimizers = reference.make_optimizers(generator, discriminator, RATE)
    z, losses = latents(device), []
    with Gradients() as gradients:
        for iteration, real in enumerate(batches(dtype, device, count, seed)):
            zs = [next(z).to(dtype) for _ in range(2)]
            losses += reference.training_iteration(
                generator, discriminator, *optimizers, real, *zs, iteration, clip_interval=5
            )
    return summary(losses, gradients, generator, discriminator)


def trace_of_step(dtype, device, count=ITERATIONS, seed=2):
    # Replays would run no hook of the optimizers, which collect the gradients.
    step, losses = fast_step(dtype, device, clip_interval=5, cuda_graph="off"), []
    with Gradients() as gradients:
        for real in batches(dtype, device, count, seed):
            scalars = step(real)
            losses += [scalars["loss_discriminator"], scalars["loss_generator"]]
    return summary(losses, gradients, step.generator, step.discriminator)


def summary(losses, gradients, generator, discriminator):
    states = {"generator": generator.state_dict(), "discriminator": discriminator.state_dict()}
    statistics = {f"{n}.{k}": v for n, state in states.items() for k, v in state.items() if "running" in k}
    return {
        "losses": torch.stack(losses).double().cpu(),
        "discriminator gradients": torch.cat(gradients.flat()[::2]),
        "generator gradients": torch.cat(gradients.flat()[1::2]),
        "generator": flat(states["generator"]),
        "discriminator": flat(states["discriminator"]),
        "batch norm statistics": flat(statistics),
    }


def relative_error(got, exact):
    return ((got - exact).norm() / exact.norm()).item()


def assert_same_in_float64(got, expected):
    # The bound is loose because the gradient of a bias in front of a batch norm is rounding, which RMSprop amplifies.
    for name in expected:
        assert relative_error(got[name], expected[name]) < 1e-8, name


def test_iterations_in_float64_are_the_references(device):
    """The iterations go from one clipping to the next."""
    assert_same_in_float64(*(trace(torch.float64, device, 6) for trace in (trace_of_step, trace_of_reference)))


def test_the_first_losses_and_gradients_in_float32_are_as_accurate_as_the_references(device):
    """Compare before the optimizers amplify rounding, on average over several batches, since a loss is one number."""
    names = ("losses", "discriminator gradients", "generator gradients")
    errors = {name: [] for name in names}
    for seed in range(4):
        traces = []
        for trace, dtype in (
            (trace_of_reference, torch.float64),
            (trace_of_reference, torch.float32),
            (trace_of_step, torch.float32),
        ):
            traces.append(trace(dtype, device, 1, seed))
        exact, eager, fast = traces
        for name in names:
            errors[name].append((relative_error(fast[name], exact[name]), relative_error(eager[name], exact[name])))
    for name, pairs in errors.items():
        got, own = (sum(column) for column in zip(*pairs, strict=True))
        assert got <= 2 * own, name


@pytest.mark.slow
def test_twenty_iterations_are_the_references_in_float64_and_as_accurate_in_float32(device):
    exact = trace_of_reference(torch.float64, device)
    assert_same_in_float64(trace_of_step(torch.float64, device), exact)
    reference32, fast32 = trace_of_reference(torch.float32, device), trace_of_step(torch.float32, device)
    for name in exact:
        own = relative_error(reference32[name], exact[name])
        assert relative_error(fast32[name], exact[name]) <= 2 * own, name


def first_bf16_gradients_of_reference(seed, device):
    """Return gradients under autocast, which users of the reference take for bfloat16."""
    generator, discriminator = references(torch.float32, device)
    optimizers = reference.make_optimizers(generator, discriminator, RATE)
    z = latents(device)
    zs = [next(z) for _ in range(2)]
    with torch.autocast(torch.device(device).type, torch.bfloat16), Gradients() as gradients:
        real = batches(torch.float32, device, 1, seed)[0]
        reference.training_iteration(generator, discriminator, *optimizers, real, *zs, iteration=1)
    return gradients.flat()


def test_the_first_gradients_in_bf16_are_as_accurate_as_autocast_makes_them(device):
    errors = []
    for seed in range(4):
        exact = trace_of_reference(torch.float64, device, 1, seed)
        step = fast_step(torch.float32, device, precision="bf16", clip_interval=0, cuda_graph="off")
        with Gradients() as gradients:
            step(batches(torch.float32, device, 1, seed)[0])
        autocast = first_bf16_gradients_of_reference(seed, device)
        for name, fast, eager in zip(("discriminator", "generator"), gradients.flat(), autocast, strict=True):
            truth = exact[f"{name} gradients"]
            errors.append((relative_error(fast, truth), relative_error(eager, truth)))
    for pairs in (errors[::2], errors[1::2]):
        got, own = (sum(column) for column in zip(*pairs, strict=True))
        assert got <= 2 * own


def test_bf16_keeps_weights_statistics_losses_and_optimizers_in_float32(device):
    step = fast_step(torch.float32, device, precision="bf16", learning_rate=1e-7, clip_interval=2, ema_decay=0.5)
    start = copy.deepcopy(step.state_dict())
    for real in batches(torch.float32, device, 3):
        scalars = step(real)
    assert all(value.dtype == torch.float32 for value in scalars.values())
    state = step.state_dict()
    for network in ("generator", "discriminator", "ema"):
        assert {tensor.dtype for tensor in state[network].values()} == {torch.float32, torch.int64}
    for name in ("generator_optimizer", "discriminator_optimizer"):
        assert all(entry["square_avg"].dtype == torch.float32 for entry in state[name]["state"].values())
    # So small a change would be lost in bfloat16.
    change = flat(state["generator"]) - flat(start["generator"])
    assert 0 < change.abs().median() < flat(start["generator"]).abs().median() / 256


def test_in_bf16_copies_of_the_weights_follow_updates_the_constraint_and_a_loaded_state(device):
    step = fast_step(torch.float32, device, precision="bf16", clip_interval=1, cuda_graph="off")
    other = fast_step(torch.float32, device, precision="bf16", clip_interval=1, cuda_graph="off", seed=1)
    first, second = batches(torch.float32, device, 2)
    step(first)
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    for network in (step._generator, step._discriminator, other._generator, other._discriminator):
        computed = dict(network.computing.named_parameters())
        for name, parameter in network.module.named_parameters():
            # Batch norms compute with the parameters themselves.
            same = computed[name] is parameter if computed[name].dtype == torch.float32 else False
            assert same or torch.equal(computed[name], parameter.bfloat16()), name
    assert torch.equal(torch.stack([*step(second).values()]), torch.stack([*other(second).values()]))


def test_adam_is_pytorchs(device):
    step = fast_step(torch.float64, device, optimizer=Adam, clip_interval=0)
    generator, discriminator = references(torch.float64, device)
    optimizers = [torch.optim.Adam(network.parameters(), lr=RATE) for network in (generator, discriminator)]
    z = latents(device)
    for iteration, real in enumerate(batches(torch.float64, device, 2)):
        zs = [next(z).double() for _ in range(2)]
        losses = reference.training_iteration(generator, discriminator, *optimizers, real, *zs, iteration + 1)
        scalars = step(real)
        torch.testing.assert_close(scalars["loss_generator"], losses[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("clip_interval", [1, 3])
def test_several_critic_steps_are_those_of_the_reference_with_the_constraint_behind_each(clip_interval, device):
    step = fast_step(torch.float64, device, critic_steps=2, clip_interval=clip_interval)
    generator, discriminator = references(torch.float64, device)
    of_generator, of_discriminator = reference.make_optimizers(generator, discriminator, RATE)
    random, done = torch.Generator(device).manual_seed(7), 0

    def fakes():
        return generator((torch.rand(BATCH // 2, LATENT, generator=random, device=device) * 2 - 1).double())

    for real in batches(torch.float64, device, 2):
        for part in real.chunk(2):
            of_discriminator.zero_grad()
            fake = fakes().detach()
            # Real videos first, in running statistics too.
            loss = -discriminator(part).mean()
            (loss + discriminator(fake).mean()).backward()
            of_discriminator.step()
            if done % clip_interval == 0:
                reference.constrain(discriminator)
            done += 1
        of_generator.zero_grad()
        (-discriminator(fakes()).mean()).backward()
        of_generator.step()
        step(real)
    for own, other in ((step.generator, generator), (step.discriminator, discriminator)):
        assert relative_error(flat(own.state_dict()), flat(other.state_dict())) < 1e-8


def test_the_learning_rate_falls_to_nothing(device):
    step = fast_step(torch.float32, device, decay_steps=4, clip_interval=0)
    rates, changes = [], []
    for real in batches(torch.float32, device, 5):
        before = flat(dict(step.generator.named_parameters())).detach()
        step(real)
        rates.append(step.state_dict()["generator_optimizer"]["param_groups"][0]["lr"])
        changes.append((flat(dict(step.generator.named_parameters())).detach() - before).norm().item())
    assert rates == pytest.approx([RATE * left / 4 for left in (4, 3, 2, 1, 0)])
    assert all(change > 0 for change in changes[:4])
    assert changes[4] == 0


def test_the_discriminator_has_a_learning_rate_of_its_own(device):
    # RMSprop's first step moves a weight by ten times the rate, wherever its gradient is not tiny.
    step = fast_step(torch.float64, device, learning_rate=1e-5, discriminator_learning_rate=4e-5, clip_interval=0)
    networks = step.generator, step.discriminator
    before = [flat(dict(network.named_parameters())).detach() for network in networks]
    step(next(iter(batches(torch.float64, device, 1))))
    after = [flat(dict(network.named_parameters())).detach() for network in networks]
    assert [(b - a).abs().max().item() for a, b in zip(before, after, strict=True)] == pytest.approx([1e-4, 4e-4], 1e-3)
    state = step.state_dict()
    again = fast_step(torch.float64, device, learning_rate=1e-5, discriminator_learning_rate=2e-5)
    again.load_state_dict(state)
    optimizers = [again.state_dict()[f"{name}_optimizer"] for name in ("generator", "discriminator")]
    assert [optimizer["param_groups"][0]["lr"] for optimizer in optimizers] == [1e-5, 2e-5]


def test_all_that_the_discriminator_sees_is_noisy(device):
    step = fast_step(torch.float32, device, input_noise=0.3, cuda_graph="off")
    seen = []
    step.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    still = torch.full((BATCH, 3, 16, 64, 64), 0.5, device=device)
    step(still)
    (real, fake), of_generator = seen[0].chunk(2), seen[1]
    assert (real.mean().item(), real.std().item()) == pytest.approx((0.5, 0.3), abs=0.002)
    # The generator's first videos have hardly any contrast.
    assert fake.std().item() == pytest.approx(0.3, abs=0.02)
    assert of_generator.std().item() == pytest.approx(0.3, abs=0.02)
    noise = [(real - 0.5).flatten(), (fake - fake.mean()).flatten(), (of_generator - of_generator.mean()).flatten()]
    assert (torch.corrcoef(torch.stack(noise)) - torch.eye(3, device=device)).abs().max() < 0.2


def test_what_the_step_cannot_do_is_refused(device):
    step = fast_step(torch.float32, device, critic_steps=3)
    with pytest.raises(
        ValueError, match="a batch of 4 cannot be split evenly over 3 critic steps: choose a multiple of 3"
    ):
        step(batches(torch.float32, device, 1)[0])
    step = fast_step(torch.float32, device)
    with pytest.raises(ValueError, match="the training step has no classes, and got labels"):
        step(batches(torch.float32, device, 1)[0], torch.zeros(BATCH, dtype=torch.int64, device=device))
    for options in ({"objective": Vanilla()}, {"critic_steps": 2}):
        with pytest.raises(ValueError, match="shared_fakes needs an objective with opposite losses and one critic"):
            fast_step(torch.float32, device, shared_fakes=True, **options)


def test_the_notebooks_state_continues_as_the_notebook_does(device):
    """Networks and optimizers as it saves them, into the middle of a run."""
    generator, discriminator = references(torch.float64, device)
    optimizers = reference.make_optimizers(generator, discriminator, RATE)
    real, z = batches(torch.float64, device, 4), latents(device, seed=1)
    for iteration in (2, 3):
        zs = [next(z).double() for _ in range(2)]
        reference.training_iteration(generator, discriminator, *optimizers, real.pop(), *zs, iteration)
    step, z = fast_step(torch.float64, device), latents(device)
    state = {"iteration": 4, "generator": generator.state_dict(), "discriminator": discriminator.state_dict()}
    names = ("generator_optimizer", "discriminator_optimizer")
    step.load_state_dict(copy.deepcopy(state | dict(zip(names, (o.state_dict() for o in optimizers), strict=True))))
    # Both constrain the discriminator in the second one.
    for iteration in (4, 5):
        zs, batch = [next(z).double() for _ in range(2)], real.pop()
        losses = reference.training_iteration(generator, discriminator, *optimizers, batch, *zs, iteration)
        scalars = step(batch)
        for name, loss in zip(("loss_discriminator", "loss_generator"), losses, strict=True):
            torch.testing.assert_close(scalars[name], loss, rtol=1e-7, atol=1e-9)
    for own, other in ((step.generator, generator), (step.discriminator, discriminator)):
        assert relative_error(flat(own.state_dict()), flat(other.state_dict())) < 1e-8
    assert step.iteration == 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_read_within_the_step_is_trained_on(device, precision):
    clips = torch.randint(256, (BATCH, 16, 64, 64, 3), dtype=torch.uint8, device=device)
    reads = fast_step(torch.float32, device, precision=precision, read=to_videos)
    given = fast_step(torch.float32, device, precision=precision)
    for _ in range(2):
        got, expected = reads(clips), given(to_videos(clips))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


REPLAYED = [
    {},
    {"shared_fakes": True},
    {"ema_decay": 0.9, "optimizer": Adam},
    {"critic_steps": 2, "decay_steps": 9},
    {"objective": Vanilla(), "input_noise": 0.3},
    {"constraint": GradientPenalty()},
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", REPLAYED, ids=lambda options: "-".join(options) or "default")
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_cuda_graphs_change_nothing(precision, options):
    options = options | {"precision": precision, "clip_interval": 2}
    with repeatable_cudnn():
        ungraphed = fast_step(torch.float32, "cuda", cuda_graph="off", **options)
        replayed = fast_step(torch.float32, "cuda", cuda_graph="on", **options)
        for real in batches(torch.float32, "cuda", 9):
            torch.testing.assert_close(replayed(real), ungraphed(real), rtol=0, atol=0)
    torch.testing.assert_close(replayed.state_dict(), ungraphed.state_dict(), rtol=0, atol=0)


@contextlib.contextmanager
def repeatable_cudnn():
    """Let cuDNN choose among algorithms whose results repeat."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@pytest.mark.usefixtures("stand_in_graphs")
@pytest.mark.parametrize("options", [{}, {"critic_steps": 2}, {"shared_fakes": True}], ids=str)
def test_a_step_that_nobody_has_any_more_is_gone_at_once_with_its_graphs(options, monkeypatch):
    """A graph that the garbage collector destroys while another one is captured invalidates that."""
    monkeypatch.setattr("tgan_fast.training.step.use_cuda_graph", lambda *_, **__: True)

    def used_step():
        step = fast_step(torch.float32, "cpu", **options)
        step(batches(torch.float32, "cpu", 1)[0])
        return step

    # The first optimizer of a process imports parts of PyTorch that keep the frames of their caller.
    used_step()
    assert dies_with_its_last_reference(used_step)


@pytest.mark.gpu
def test_a_state_loaded_into_a_recorded_step_continues_from_there():
    step = fast_step(torch.float32, "cuda", cuda_graph="on", clip_interval=2)
    real = batches(torch.float32, "cuda", 8)
    for batch in real[:6]:
        step(batch)
    state = copy.deepcopy(step.state_dict())
    expected = [step(batch) for batch in real[6:]]
    step.load_state_dict(state)
    for batch, scalars in zip(real[6:], expected, strict=True):
        torch.testing.assert_close(step(batch), scalars, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_recorded_step_refuses_other_batches():
    step = fast_step(torch.float32, "cuda", cuda_graph="on")
    step(batches(torch.float32, "cuda", 1)[0])
    with pytest.raises(ValueError, match=r"the CUDA graph takes batches of \[4, 3, 16, 64, 64\]"):
        step(batches(torch.float32, "cuda", 1)[0][:2])


def test_wasted_work_is_left_out(monkeypatch):
    """Count operations in GFLOP at batch 32; on paper, the reference has 1449.

    Without its backward passes through G in D's step and for D's weights in G's step, it has 1086; also without fifteen
    of sixteen convolutions of the content latent, 1022; and with half of D's last 3D convolution, 988 (8.6 in each of
    three forward passes, three for the gradient of its input and two for that of its weight).
    """
    real = torch.zeros(2, 3, 16, 64, 64)
    with torch.device("meta"):
        generator, discriminator = reference.Generator(1.0, LATENT), reference.Discriminator()
    optimizers = reference.make_optimizers(generator, discriminator)
    z = torch.rand(2, LATENT, device="meta")
    with FlopCounterMode(display=False) as eager:
        reference.training_iteration(generator, discriminator, *optimizers, real.to("meta"), z, z, iteration=1)
    step = TrainingStep(VideoGenerator(1.0, LATENT), VideoDiscriminator(), precision="fp32", clip_interval=0)
    with FlopCounterMode(display=False) as chosen:
        step(real)
    # Algorithms that multiply by zeros, but are faster, would change the count.
    for operation in TABLE.keys() - {"conv3d_two_frames"}:
        monkeypatch.setitem(TABLE[operation], "cpu", DIRECT)
    with FlopCounterMode(display=False) as fast:
        step(real)
    assert fast.get_total_flops() / eager.get_total_flops() == pytest.approx(988 / 1449, abs=0.005)
    assert chosen.get_total_flops() <= 1.02 * fast.get_total_flops()


def test_shared_fakes_are_the_authors_order(device):
    """One forward pass gives both losses, and G is updated first."""
    step = fast_step(torch.float64, device, shared_fakes=True, clip_interval=0)
    generator, discriminator = references(torch.float64, device)
    optimizers = reference.make_optimizers(generator, discriminator, RATE)
    z = latents(device)
    for real in batches(torch.float64, device, 2):
        fake = generator(next(z).double())
        score_real, score_fake = discriminator(real).mean(), discriminator(fake).mean()
        generator_gradients = torch.autograd.grad(-score_fake, generator.parameters(), retain_graph=True)
        discriminator_gradients = torch.autograd.grad(score_fake - score_real, discriminator.parameters())
        for network, gradients, optimizer in zip(
            (generator, discriminator), (generator_gradients, discriminator_gradients), optimizers, strict=True
        ):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
        scalars = step(real)
        torch.testing.assert_close(scalars["loss_discriminator"], (score_fake - score_real).detach())
        torch.testing.assert_close(scalars["loss_generator"], -score_fake.detach())
    for network, eager in ((step.generator, generator), (step.discriminator, discriminator)):
        assert relative_error(flat(network.state_dict()), flat(eager.state_dict())) < 1e-9


@pytest.mark.parametrize(("interval", "clipped"), [(0, []), (1, [0, 1, 2, 3]), (3, [0, 3])])
def test_clipping_happens_every_interval_from_iteration_zero(interval, clipped):
    step = fast_step(torch.float32, "cpu", clip_interval=interval)
    seen = []
    for iteration, real in enumerate(batches(torch.float32, "cpu", 4)):
        with torch.no_grad():
            step.discriminator.conv2d.weight.mul_(100)
        step(real)
        if torch.linalg.vector_norm(step.discriminator.conv2d.weight) < 1.001:
            seen.append(iteration)
    assert seen == clipped
    assert step.iteration == 4


def test_average_of_the_weights(device):
    step = fast_step(torch.float32, device, ema_decay=0.9)
    expected = copy.deepcopy(list(step.generator.parameters()))
    for real in batches(torch.float32, device, 3):
        step(real)
        expected = [0.9 * a + 0.1 * b for a, b in zip(expected, step.generator.parameters(), strict=True)]
    for a, b in zip(step.ema.parameters(), expected, strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=1e-5, atol=1e-7)
        assert not a.requires_grad
    assert not any(module.training for module in step.ema.modules())
    assert fast_step(torch.float32, device).ema is None


def test_the_average_scales_in_evaluation_as_batches_of_training_do(device):
    step = fast_step(torch.float32, device, ema_decay=0.9)
    for real in batches(torch.float32, device, 3):
        step(real)
    live = copy.deepcopy(step.generator.state_dict())
    random = step.state_dict()["random"]
    trained = copy.deepcopy(step.ema).train()
    norms = [module for module in trained.modules() if isinstance(module, BATCH_NORMS)]
    scales = {norm: [] for norm in norms}
    shifts = {norm: [] for norm in norms}

    def record(norm, inputs):
        flat = inputs[0].transpose(0, 1).flatten(1)
        scales[norm].append((flat.var(1, correction=0) + norm.eps).rsqrt())
        shifts[norm].append(-flat.mean(1) * scales[norm][-1])

    for norm in norms:
        norm.register_forward_pre_hook(record)
    latents = torch.rand(64, len(real), step.generator.latent_dim, device=device) * 2 - 1
    for batch in latents:
        trained.frames(batch)
    batch_count = math.ceil(256 / len(real))
    for norm, own in zip(norms, (m for m in step.ema.modules() if isinstance(m, BATCH_NORMS)), strict=True):
        assert own.momentum == 0.1
        scale = (own.running_var + own.eps).rsqrt()
        for estimated, exact in ((scale, scales[norm]), (-own.running_mean * scale, shifts[norm])):
            exact = torch.stack(exact)
            # Standard errors of both means together.
            error = exact.std(0) * (1 / batch_count + 1 / len(exact)) ** 0.5
            assert ((estimated - exact.mean(0)) / error).square().mean().sqrt() < 2
    for name, value in step.generator.state_dict().items():
        assert torch.equal(value, live[name]), name
    assert torch.equal(step.state_dict()["random"], random)


@pytest.mark.parametrize("options", [{}, {"shared_fakes": True, "ema_decay": 0.9}], ids=str)
def test_a_restored_state_continues_bit_for_bit(options):
    real = batches(torch.float32, "cpu", 4)
    whole = fast_step(torch.float32, "cpu", clip_interval=2, **options)
    first = fast_step(torch.float32, "cpu", clip_interval=2, **options)
    for batch in real[:2]:
        whole(batch), first(batch)
    second = fast_step(torch.float32, "cpu", clip_interval=2, **(options | {"seed": 99}))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for batch in real[2:]:
        torch.testing.assert_close(whole(batch), second(batch), rtol=0, atol=0)
    torch.testing.assert_close(whole.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_frozen_parameters_of_the_discriminator_stay_frozen():
    step = fast_step(torch.float32, "cpu", clip_interval=0)
    step.discriminator.conv2d.bias.requires_grad_(False)
    before = step.discriminator.conv2d.bias.clone()
    step(batches(torch.float32, "cpu", 1)[0])
    assert torch.equal(step.discriminator.conv2d.bias, before)
    trainable = [name for name, p in step.discriminator.named_parameters() if not p.requires_grad]
    assert trainable == ["conv2d.bias"]


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (torch.zeros(1, 3, 16, 64, 64), "a batch of 1 is too small"),
        (torch.zeros(0, 3, 16, 64, 64), "a batch of 0 is too small"),
        (torch.zeros(4, 3, 16, 64, 64, dtype=torch.uint8), "floating-point videos in \\[-1, 1\\] and got torch.uint8"),
        (torch.zeros(4, 3, 64, 64), "takes videos"),
        (torch.zeros(4, 1, 16, 64, 64), "takes videos"),
        (torch.zeros(4, 3, 16, 32, 32), "takes videos"),
    ],
)
def test_bad_batches_are_named_and_change_nothing(real, message):
    step = fast_step(torch.float32, "cpu")
    before = copy.deepcopy(step.state_dict())
    with pytest.raises(ValueError, match=message):
        step(real)
    torch.testing.assert_close(step.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", REPLAYED, ids=lambda options: "-".join(options) or "default")
def test_an_iteration_copies_no_numbers_from_the_host(options):
    step = fast_step(torch.float32, "cpu", clip_interval=0, precision="bf16", **options)
    real = batches(torch.float32, "cpu", 1)[0]
    with RefusesHostCopies():
        step(real)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", ["off", "on"])
def test_an_iteration_never_waits_for_the_gpu(cuda_graph):
    step = fast_step(torch.float32, "cuda", clip_interval=1, ema_decay=0.9, cuda_graph=cuda_graph)
    real = batches(torch.float32, "cuda", 1)[0]
    # Recording a graph waits.
    for _ in range(4):
        step(real)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(real)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_constraint_reports_a_broken_weight_until_a_good_state_is_loaded(device):
    step = fast_step(torch.float32, device, clip_interval=1)
    step(batches(torch.float32, device, 1)[0])
    assert step.non_finite.item() == 0
    good = copy.deepcopy(step.state_dict())
    with torch.no_grad():
        next(step.discriminator.parameters())[0] = float("nan")
    step(batches(torch.float32, device, 1)[0])
    assert step.non_finite.item() == 1
    step.load_state_dict(good)
    assert step.non_finite.item() == 0
