"""The config: types, ranges, unknown keys, YAML."""

import random
from contextlib import suppress
from typing import get_args

import pytest
import torch
import yaml

from tgan_fast.errors import InputError
from tgan_fast.models.latents import LATENTS
from tgan_fast.models.sampling import draw_inputs, sample_videos
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.build import build_step
from tgan_fast.training.config import read_yaml
from tgan_fast.training.registry import REGISTRY, lookup


def test_the_defaults_are_the_papers():
    config = TrainingConfig()
    assert (config.width, config.latent_dim, config.channels) == (1, 100, 3)
    assert (config.batch_size, config.steps, config.learning_rate, config.clip_interval) == (32, 81_000, 5e-5, 5)
    assert TrainingConfig(**PRESETS["paper"]) == config


def test_every_preset_is_valid_and_every_setting_explained():
    for values in PRESETS.values():
        TrainingConfig(**values)
    assert all(field.description for field in TrainingConfig.model_fields.values())


def test_every_system_has_a_preset_for_gpus_and_one_for_cpus():
    systems = {name for name in PRESETS if not name.startswith("tiny")} - {"digits", "quick"}
    assert {name.removeprefix("tiny-") for name in PRESETS if name.startswith("tiny-")} == systems - {"paper"}
    for name in systems - {"paper"}:
        both = [TrainingConfig(**PRESETS[preset]) for preset in (name, f"tiny-{name}")]
        for setting in REGISTRY:
            assert getattr(both[0], setting) == getattr(both[1], setting)
        assert both[0].width == 1


@pytest.mark.parametrize("image_generator", REGISTRY["image_generator"])
def test_untrained_videos_have_the_initial_level(image_generator):
    small = {"width": 0.125, "channels": 1, "frames": 8, "image_size": 16, "image_generator": image_generator}
    # By default the bias is random.
    for level, error in ((None, 0.35), (-0.8, 0.05)):
        generator = build_step(TrainingConfig(**small, initial_level=level), torch.device("cpu")).generator
        videos = sample_videos(generator, draw_inputs(generator, 8, 0), batch_statistics=True)
        assert videos.mean().item() == pytest.approx(level or 0, abs=error)


def test_all_variants_are_settings():
    for setting, variants in REGISTRY.items():
        assert get_args(TrainingConfig.model_fields[setting].annotation) == tuple(variants)
        for name in variants:
            options = {"frames": 16, setting: name}
            assert getattr(TrainingConfig(**options), setting) == name
            assert isinstance(lookup(setting, name), type)
    assert {name: type(latent) for name, latent in LATENTS.items()} == {
        n: lookup("latent", n) for n in REGISTRY["latent"]
    }


def test_a_config_survives_yaml(tmp_path):
    config = TrainingConfig(**PRESETS["tiny"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()))
    assert TrainingConfig(**read_yaml(path)) == config


def test_yaml_numbers_without_a_point_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-4 as a string."""
    path = tmp_path / "config.yaml"
    path.write_text("learning_rate: 1e-4\nema_decay: null\n")
    assert TrainingConfig(**read_yaml(path)).learning_rate == 1e-4
    path.write_text("")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 4}, "there is no setting batchsize; did you mean batch_size"),
        ({"qqqq": 4}, "there is no setting qqqq$"),
        ({"batch_size": 0}, "batch_size is 0, but batch norm needs at least 2 videos"),
        ({"batch_size": 1}, "batch_size is 1, but batch norm needs at least 2 videos"),
        ({"batch_size": "many"}, "batch_size is 'many', but it must be a valid integer"),
        ({"learning_rate": -1}, "learning_rate is -1, but it must be greater than 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, but it must be less than 1"),
        ({"digits": 3}, "digits is 3, but it must be 1 or 2"),
        ({"width": 0}, "width is 0, but it must be greater than or equal to 0.002"),
        ({"image_size": 48}, "image_size is 48, but it must be a power of two from 16 to 128"),
        ({"learning_rate": float("inf")}, "learning_rate is inf, but it must be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, but it must be a finite number"),
        ({"width": 1e-9}, "width is 1e-09, but it must be greater than or equal to 0.002"),
        ({"seed": 10**20}, "seed is 100000000000000000000, but it must be less than or equal to 9223372036854775807"),
        ({"steps": 10**30}, "but it must be less than or equal to 1000000000000"),
        ({"data": 100_000 * "x", "seed": "x"}, "seed is 'x', but it must be a valid integer"),
        ({"objective": 100_000 * "x"}, "objective is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', but it must be"),
        ({"frames": 7}, "frames is 7, but it must be greater than or equal to 8"),
        ({"frames": 65}, "frames is 65, but it must be less than or equal to 64"),
        ({"frames": 12}, "frames is 12, which temporal_generator deconv cannot make by doubling: choose 8, 16, 32"),
        ({"objective": "hingis"}, "objective is 'hingis', but it must be 'wgan', 'hinge', 'vanilla' or 'lsgan'"),
        ({"digit_size": 1.0}, "digit_size is 1.0, but it must be less than or equal to 0.9375"),
        ({"classes": 5}, "classes is 5, but only conditional runs have classes: add conditional, or leave out classes"),
        ({"penalty_weight": 5}, "penalty_weight is 5.0, but the constraint is svc: choose constraint gradient-penalty"),
        (
            {"constraint": "gradient-penalty", "sync_batch_norm": True},
            "constraint gradient-penalty differentiates twice, which sync_batch_norm does not support",
        ),
        (
            {"adam_beta1": 0.5},
            "adam_beta1 is for optimizer adam, not rmsprop: choose optimizer adam, or leave out adam_beta1",
        ),
        ({"optimizer": "adam", "adam_beta2": 1}, "adam_beta2 is 1, but it must be less than 1"),
        (
            {"augment": "color,blur"},
            "augment has 'blur', but the transforms are color, translation, cutout: choose from",
        ),
        ({"augment": ","}, "augment is empty: name transforms such as color,translation,cutout, or leave it out"),
        ({"shared_fakes": True, "objective": "lsgan"}, "shared_fakes needs two opposite losses"),
        ({"shared_fakes": True, "critic_steps": 2}, "shared_fakes is one batch of fakes .* critic_steps is 2"),
    ],
)
def test_bad_values_are_named_in_one_sentence(values, message):
    with pytest.raises(InputError, match=message) as caught:
        TrainingConfig(**values)
    assert "\n" not in str(caught.value)


def test_yaml_files_with_anything_wrong_end_in_a_sentence(tmp_path):
    chances = random.Random(0)
    right = yaml.safe_dump(TrainingConfig(ema_decay=0.5, data=None).model_dump()).encode()
    tags = [b"!!int ''", b"!!float ''", b"!!bool x", b"!!timestamp x", b"!!binary x", b"!!python/name:os.system ''"]
    path, read = tmp_path / "x.yaml", 0
    for _ in range(300):
        start, end = sorted(chances.randrange(len(right)) for _ in range(2))
        other = chances.choice([*tags, b"", right[end:], bytes([chances.randrange(256)]), b"[", b"&a", b"*a", b"\n- "])
        path.write_bytes(right[:start] + other + right[chances.choice([start, start + 1, end]) :])
        # Any other exception fails the test.
        with suppress(InputError):
            TrainingConfig(**read_yaml(path))
            read += 1
    assert 0 < read < 300


def test_bad_yaml_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the config file .*nothing\.yaml: No such file"):
        read_yaml(tmp_path / "nothing.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="must hold lines of 'key: value'"):
        read_yaml(path)
    path.write_text("a: [1\n")
    with pytest.raises(InputError, match="is not a YAML file") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    path.write_text("width: 0.5\nsteps: 1\nwidth: 0.25\n")
    with pytest.raises(InputError, match="is not a YAML file of settings: it has width twice: leave one of them out"):
        read_yaml(path)
    for content in (
        "? [1, 2]\n: 3\n",
        "? 1\n: 3\n",
        "steps: " + 5000 * "9",
        2000 * "[" + 2000 * "]",
        "a: &a [*a]\n? *a\n: 1",
    ):
        path.write_text(content)
        with pytest.raises(InputError) as caught:
            read_yaml(path)
        assert "\n" not in str(caught.value)
    path.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="is not a YAML file"):
        read_yaml(path)
