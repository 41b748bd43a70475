"""Long runs compare what is comparable, and their clocks count training alone; the curves are their own business."""

import io
import itertools
import json
from contextlib import ExitStack, closing

import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from benchmarks import results
from benchmarks.convergence import __main__ as command
from benchmarks.convergence import judge as judging
from benchmarks.convergence import picture as drawing
from benchmarks.convergence import runs
from tgan_fast.training import PRESETS, TrainingConfig

CPU = torch.device("cpu")
SIZES = judging.Sizes(points=2, real=40, generated=34)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def config():
    return TrainingConfig(**PRESETS["tiny"] | {"width": 1 / 32, "batch_size": 2, "ema_decay": None, "device": "cpu"})


@pytest.fixture(scope="module")
def judge(config):
    return judging.Judge(config, CPU, SIZES)


def ticking():
    """A clock that a second passes on whenever it is read."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


def trained(contender, times, judge=None):
    """Its points and all that its generator has, after so many iterations."""
    with closing(contender):
        for _ in range(times):
            contender.train(until=0.0)
            if judge is not None:
                contender.add_point(judge)
        contender.add_point(lambda generator: 0.0)
        return contender.points, {name: tensor.clone() for name, tensor in contender.generator.state_dict().items()}


def gaussian(seed, size=5):
    samples = torch.randn(200, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return judging.Gaussian.of(samples @ mixing + seed)


def test_the_distance_of_two_gaussians_is_the_known_one():
    """N(m, s²·I) and N(n, t²·I) are |m − n|² + D·(s − t)² apart."""
    unit = torch.eye(7, dtype=torch.float64)
    first, second = judging.Gaussian(unit[0], unit), judging.Gaussian(3 * unit[1], 9 * unit)
    assert judging.frechet_distance(first, second) == pytest.approx(1 + 9 + 7 * 4)


def test_the_distance_of_covariances_that_do_not_commute_is_that_of_the_formula():
    first, second = gaussian(1), gaussian(3)
    root = torch.from_numpy(sqrtm((first.covariance @ second.covariance).numpy()).real)
    means = (first.mean - second.mean).square().sum()
    expected = means + (first.covariance + second.covariance - 2 * root).trace()
    assert judging.frechet_distance(first, second) == pytest.approx(expected.item())
    assert judging.frechet_distance(second, first) == pytest.approx(expected.item())


def test_nothing_is_no_distance_away_from_itself():
    samples = torch.randn(50, 60)  # a covariance without full rank
    same = judging.Gaussian.of(samples)
    assert judging.frechet_distance(same, judging.Gaussian.of(samples)) < 1e-5 * same.covariance.trace()


def test_components_of_clips_in_few_dimensions_keep_their_distances():
    blocks = torch.randint(0, 256, (50, 4), dtype=torch.uint8)
    clips = blocks.repeat_interleave(16, dim=1).reshape(50, 4, 4, 4, 1)
    components = judging.PrincipalComponents(clips, 4)
    pixels = clips.flatten(1) / 127.5 - 1
    torch.testing.assert_close(torch.pdist(components(clips)), torch.pdist(pixels), rtol=1e-3, atol=1e-3)
    assert components.explained == pytest.approx(1)
    fewer = judging.PrincipalComponents(clips, 2)
    kept = fewer(clips).var(dim=0).sum() / pixels.var(dim=0).sum()
    assert fewer.explained == pytest.approx(kept.item(), rel=1e-3)
    assert 0.5 < fewer.explained < 1


def test_real_clips_are_nearer_to_real_clips_than_those_of_an_untrained_generator(config, judge):
    with closing(runs.make_fast("fast", config, CPU)) as contender:
        assert 0 < judge.floor < 0.5 * judge(contender.generator)
    training, real = judging.real_clips(config, 4, config.seed), judging.real_clips(config, 4, config.seed + 1)
    assert not torch.equal(training, real)


@pytest.mark.parametrize("make", [runs.make_fast, runs.make_reference])
def test_judging_leaves_no_trace(make, config, judge):
    judged, weights = trained(make("judged", config, CPU), 3, judge)
    points, others = trained(make("not judged", config, CPU), 3)
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    assert len(judged) == 3
    assert points[0]["loss_discriminator"] == pytest.approx(sum(p["loss_discriminator"] for p in judged) / 3, rel=1e-3)


def test_judging_twice_is_judging_once(config, judge):
    with closing(runs.make_fast("fast", config, CPU)) as contender:
        before = judge(contender.generator)
        contender.train(until=0.0)
        random = torch.get_rng_state()
        assert judge(contender.generator) != before
        assert judge(contender.generator) == judge(contender.generator)
        assert torch.equal(torch.get_rng_state(), random)
        assert all(module.training for module in contender.generator.modules())


def test_contenders_begin_alike_and_see_the_same(config, judge):
    fast, slow = runs.make_contenders("fast-vs-reference", config, CPU)
    assert [fast.name, slow.name] == [runs.FAST, runs.REFERENCE]
    other = slow.generator.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in fast.generator.state_dict().items())
    (first, _), (second, _) = (trained(contender, 3, judge) for contender in (fast, slow))
    for point, same in zip(first, second, strict=True):
        assert point["loss_discriminator"] == pytest.approx(same["loss_discriminator"], rel=0.01)
        assert point["loss_generator"] == pytest.approx(same["loss_generator"], rel=0.01)


def test_another_seed_is_another_run(config, judge):
    (first, _), (second, _) = (
        trained(runs.make_fast("fast", config.model_copy(update={"seed": seed}), CPU), 1, judge) for seed in (0, 1)
    )
    assert first[0]["loss_discriminator"] != pytest.approx(second[0]["loss_discriminator"], rel=0.01)


def test_one_of_two_clips(config, monkeypatch):
    steps, build = [], runs.build_step
    monkeypatch.setattr(runs, "build_step", lambda *args, **options: steps.append(build(*args, **options)) or steps[-1])

    def largest(step):
        weights = [weight for weight in step.discriminator.parameters() if weight.dim() > 3]
        return max(torch.linalg.matrix_norm(weight.flatten(1), 2).item() for weight in weights)

    contenders = runs.make_contenders("svc", config, CPU)
    for contender in contenders:
        trained(contender, 1)
    assert [contender.name for contender in contenders] == [runs.CLIPPED, runs.UNCLIPPED]
    clipped, unclipped = map(largest, steps[-2:])
    assert clipped == pytest.approx(1, abs=1e-4)
    assert unclipped > 1.01


@pytest.fixture
def idle(config):
    """Makes contenders that read their batches and do nothing with them; a second passes when their clock is read."""
    with ExitStack() as stack:

        def make(name, clock):
            feed = runs.open_feed(judging.MovingDigits(100), batch_size=2, channels=1, device="cpu")
            contender = runs.Contender(name, torch.nn.Identity(), lambda batch: torch.ones(2), feed, clock)
            return stack.enter_context(closing(contender))

        yield make


def test_each_gets_its_time_and_judging_takes_none_of_it(idle):
    clock = ticking()

    def slow_judge(generator):
        for _ in range(1000):
            clock()
        return 1.0

    contenders = [idle(name, clock) for name in "ab"]
    for _ in runs.take_turns(contenders, 30.0, 3, slow_judge):
        pass
    for contender in contenders:
        assert [point["seconds"] for point in contender.points] == [0, pytest.approx(11, abs=2), 21, 31]
        assert contender.points[-1]["iteration"] == contender.iterations > 10


def test_contenders_take_turns_of_some_seconds(idle, monkeypatch):
    turns = []
    train = runs.Contender.train
    monkeypatch.setattr(
        runs.Contender,
        "train",
        lambda self, until: (turns.append((self.name, until - self.seconds)), train(self, until)),
    )
    for _ in runs.take_turns([idle(name, ticking()) for name in "ab"], 50.0, 2, lambda generator: 1.0):
        pass
    assert [name for name, _ in turns] == ["a", "b"] * (len(turns) // 2)
    assert len(turns) >= 12
    assert max(seconds for _, seconds in turns) == runs.TURN_SECONDS


def test_losses_are_means_since_the_point_before(config):
    points, _ = trained(runs.make_fast("fast", config, CPU), 4)
    each, _ = trained(runs.make_fast("fast", config, CPU), 4, lambda generator: 1.0)
    for name in ("loss_discriminator", "loss_generator"):
        mean = sum(point[name] for point in each) / 4
        assert points[0][name] == pytest.approx(mean, rel=1e-3, abs=1e-3)


def test_a_loss_that_is_not_finite_ends_the_run(config):
    with closing(runs.make_fast("broken one", config, CPU)) as contender:
        next(contender.generator.parameters()).data.fill_(float("nan"))
        with pytest.raises(SystemExit, match="broken one: a loss is no longer finite after 1 iterations"):
            contender.train(until=0.0)


def curve(*metrics):
    losses = {"loss_discriminator": -0.5, "loss_generator": 0.1}
    points = [{"seconds": 10.0 * n, "iteration": n, **losses, "metric": m} for n, m in enumerate(metrics)]
    points[0] |= {"loss_discriminator": None, "loss_generator": None, "seconds": 0.0}
    return points


def test_time_to_quality_is_that_to_the_references_end():
    slow = curve(100, 90, 80, 70, 60, 50)
    reached = runs.time_to_quality(curve(100, 60, 60, 60, 10, 10), slow)
    assert reached == {"metric": 60, "seconds": 20, "reference_seconds": 50, "ratio": 2.5}
    assert "tgan_fast reaches 60 after 20 s, the reference after 50 s, 2.5 times" in drawing.quality_text(reached)


def test_a_single_good_point_is_not_the_quality():
    slow = curve(100, 90, 80, 70, 60, 50)
    assert runs.time_to_quality(curve(100, 99, 1, 99, 98, 97), slow)["seconds"] is None
    missed = runs.time_to_quality(slow, curve(100, 40, 40, 40, 40, 40))
    assert (missed["seconds"], missed["ratio"]) == (None, None)
    assert "does not reach 40" in drawing.quality_text(missed)


def test_a_reference_that_became_worse_is_not_made_to_look_slow():
    """It was as good as at its end before."""
    slow = curve(100, 50, 50, 50, 60, 60, 60)
    assert runs.time_to_quality(curve(*[100] * 6, 40), slow)["seconds"] is None
    assert runs.time_to_quality(slow, slow)["ratio"] == 1


@pytest.mark.parametrize(("seconds", "unit"), [(45.0, "seconds"), (1800.0, "minutes"), (20_000.0, "hours")])
def test_the_picture_shows_both_curves(seconds, unit, monkeypatch):
    section = {
        "environment": {"device": "some GPU", "threads": None, "torch": "2.9"},
        "title": "two of a kind",
        "preset": "paper",
        "settings": {"width": 1.0, "batch_size": 32, "seed": 0},
        "seconds": seconds,
        "components": 32,
        "explained_variance": 0.6,
        "floor": 5.0,
        "sooner": runs.time_to_quality(curve(100, 40, 30, 20), curve(100, 90, 80, 70)),
        "contenders": [
            {"contender": "first", "points": curve(100, 40, 30, 20)},
            {"contender": "second", "points": curve(100, 90, 80, 70)},
        ],
    }
    labels = []
    set_xlabel = drawing.matplotlib.axes.Axes.set_xlabel
    monkeypatch.setattr(
        drawing.matplotlib.axes.Axes, "set_xlabel", lambda axes, text: (labels.append(text), set_xlabel(axes, text))
    )
    image = Image.open(io.BytesIO(drawing.png_of(section))).convert("RGB")
    assert image.size == (1080, 840)
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (255, 255, 255)} <= colours
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert labels[-1] == f"{unit} of training, wall clock"
    without = Image.open(io.BytesIO(drawing.png_of(section | {"sooner": None}))).convert("RGB")
    assert without.tobytes() != image.tobytes()


@pytest.mark.slow
def test_a_run_writes_curves_and_a_picture_of_them(folder, monkeypatch, capsys, config):
    monkeypatch.setitem(command.PRESETS, "tiny", {**PRESETS["tiny"], "width": config.width, "batch_size": 2})
    monkeypatch.setitem(command.SIZES, "cpu", SIZES)
    for what in command.TITLES:
        command.main(what, seconds=0.2)
    printed = capsys.readouterr().out
    (file,) = folder.glob("*.json")
    sections = json.loads(file.read_text())["sections"]
    for what in command.TITLES:
        section = sections[f"convergence {what}"]
        assert section["floor"] > 0
        assert (section["sooner"] is None) == (what == "svc")
        for record in section["contenders"]:
            first, *_, last = record["points"]
            assert first["seconds"] == first["iteration"] == 0
            assert first["loss_discriminator"] is None
            assert last["seconds"] >= 0.2
            assert last["iteration"] > 0
            assert last["metric"] > 0
        picture = file.with_name(f"{file.stem}-convergence-{what}.png")
        drawn = picture.read_bytes()
        assert Image.open(picture).size == (1080, 840)
        picture.unlink()
        assert drawing.draw(file, what) == picture
        assert picture.read_bytes() == drawn
        assert f"written to {file} and {picture}" in printed


def test_a_smoke_run_writes_nothing(folder, capsys):
    command.main(smoke=True)
    assert not list(folder.iterdir())
    printed = capsys.readouterr().out
    assert all(name in printed for name in (runs.FAST, runs.REFERENCE, "other real clips"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(folder):
    with pytest.raises(SystemExit, match=r"error: device cuda cannot be used: .* --device cpu$") as error:
        command.main(device="cuda")
    assert "\n" not in str(error.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("options", "message"), [({"seconds": 0.0}, "choose more than 0"), ({"seed": -1}, "seed is -1")]
)
def test_what_cannot_be_run_is_refused(folder, options, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        command.main(**options)


@pytest.mark.gpu
def test_on_a_gpu_everything_runs(folder):
    for what in command.TITLES:
        command.main(what, device="cuda", smoke=True)
    assert not list(folder.iterdir())
