"""Exported generators, run by the programs that they are for, compute the generator's videos in evaluation mode."""

import copy
import functools
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from safetensors.torch import load
from support.generators import as_if_trained_

from tgan_fast.errors import InputError
from tgan_fast.models import exporting
from tgan_fast.models.exporting import FORMATS, describe, to_safetensors
from tgan_fast.models.generator import Generator
from tgan_fast.models.layout import to_channels_last_
from tgan_fast.models.sampling import draw_latents
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import build_generator

# Run outside of the repository, so that the package cannot be imported.
LOAD_ELSEWHERE = """
import json, sys
import numpy as np, torch
sys.modules["tgan_fast"] = None
extra = {"metadata.json": ""}
module = torch.export.load("x.pt2", extra_files=extra).module()
inputs = [torch.from_numpy(array) for array in np.load("inputs.npz").values()]
np.save("videos.npy", module(*inputs).numpy())
print(json.loads(extra["metadata.json"])["latent_distribution"])
"""

_CONDITIONAL = {"conditional": True, "classes": 3}
KINDS = {
    "gray": {"width": 0.0625, "channels": 1},
    "gru": {"temporal_generator": "gru", "image_generator": "frame", "latent": "normal", "frames": 8, "width": 0.0625},
    "conditional lstm": {"temporal_generator": "lstm", "frames": 9, "image_size": 32, "width": 0.125, **_CONDITIONAL},
    "conditional frame": {"image_generator": "frame", "frames": 8, "image_size": 16, "width": 0.125, **_CONDITIONAL},
}
# Kinds that are also exported for videos of another length.
LENGTHS = {"conditional frame": 21, "gru": 11}


@pytest.fixture(autouse=True)
def _precision_as_in_a_new_process(_reproducible):
    """Reset the precision: PyTorch's exporters want the same for convolutions and recurrent cells, even on a CPU."""
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision


def untrained(kind) -> Generator:
    return build_generator(TrainingConfig(latent_dim=12, **KINDS[kind]))


def trained(kind) -> Generator:
    """Return a generator in training mode, as if trained: batch norms have an effect, videos contain most levels."""
    generator = untrained(kind).double()
    return as_if_trained_(generator, generator.conditioned(*inputs(generator, 16))).float()


@functools.cache
def exported(kind, file_format):
    """Return a trained generator and the content of its file, both only to be read."""
    generator = trained(kind)
    return generator, FORMATS[file_format].write(generator, describe(generator))


def inputs(generator, count):
    """Return latents in the dtype of the weights, and labels if the generator has classes."""
    latents = torch.empty(count, generator.latent_dim)
    generator.latent.fill_(latents, torch.Generator().manual_seed(count))
    latents = latents.to(next(generator.parameters()).dtype)
    return (latents, torch.arange(count) % generator.classes) if generator.classes else (latents,)


def assert_as_accurate(got, generator, given):
    """Check videos against the generator in float64: the error is at most twice that of the generator itself."""
    generator = copy.deepcopy(generator).eval()
    with torch.no_grad():
        eager = generator(*given)
        latents, *labels = given
        exact = generator.double()(latents.double(), *labels)
    assert exact.std() > 0.01
    assert got.dtype == np.float32
    assert got.shape == exact.shape
    assert np.abs(got - exact.numpy()).max() <= 2 * (eager - exact).abs().max().item()


every_kind = pytest.mark.parametrize("kind", KINDS)


# The steps of recurrent cells are exported one by one, which takes a while.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * ("temporal_generator" in KINDS[kind])) for kind in KINDS]
)
def test_onnxruntime_computes_the_generators_videos(kind):
    generator, content = exported(kind, "onnx")
    session = onnxruntime.InferenceSession(content)
    names = ["latents", "labels"][: 1 + (generator.classes > 0)]
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("latents", "tensor(float)", ["N", 12]),
        ("labels", "tensor(int64)", ["N"]),
    ][: len(names)]
    frame = [generator.image_size] * 2
    (output,) = session.get_outputs()
    assert (output.name, output.shape) == ("videos", ["N", generator.channels, generator.clip_frames, *frame])
    for count in (1, 7):
        given = inputs(generator, count)
        (got,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)})
        assert_as_accurate(got, generator, given)


@every_kind
def test_a_loaded_program_computes_the_generators_videos(kind):
    generator, content = exported(kind, "torch-export")
    module = torch.export.load(io.BytesIO(content)).module()
    for count in (1, 7):
        given = inputs(generator, count)
        videos = module(*given)
        assert not videos.requires_grad
        assert_as_accurate(videos.numpy(), generator, given)


@pytest.mark.parametrize("file_format", ["onnx", "torch-export"])
@pytest.mark.parametrize("kind", LENGTHS)
def test_videos_of_another_length_are_the_generators(kind, file_format):
    generator, frames = trained(kind), LENGTHS[kind]
    content = FORMATS[file_format].write(generator, describe(generator, frames))
    windows = generator.windows(frames)
    for count in (1, 3):
        latents = draw_latents(count, 12, 0, distribution=generator.latent, windows=windows)
        given = (latents, *inputs(generator, count)[1:], frames)
        if file_format == "onnx":
            session = onnxruntime.InferenceSession(content)
            names = [value.name for value in session.get_inputs()]
            (got,) = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=False)})
        else:
            got = torch.export.load(io.BytesIO(content)).module()(*given[:-1]).numpy()
        assert got.shape[2] == frames
        assert_as_accurate(got, generator, given if generator.classes else (latents, None, frames))


@every_kind
def test_weights_by_name_are_those_of_the_generator(kind):
    generator, content = exported(kind, "safetensors")
    again = untrained(kind)
    again.load_state_dict(load(content))
    for (name, got), expected in zip(again.state_dict().items(), generator.state_dict().values(), strict=True):
        assert torch.equal(got, expected), name


@pytest.mark.slow
def test_a_program_runs_where_this_package_is_not(tmp_path):
    generator, content = exported("conditional frame", "torch-export")
    (tmp_path / "x.pt2").write_bytes(content)
    latents, labels = inputs(generator, 3)
    np.savez(tmp_path / "inputs.npz", latents=latents, labels=labels)
    command = [sys.executable, "-c", LOAD_ELSEWHERE]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "uniform in (-1, 1)\n"), result.stderr
    assert_as_accurate(np.load(tmp_path / "videos.npy"), generator, (latents, labels))


def test_weights_may_be_parts_of_one_buffer_and_have_their_channels_last():
    generator = to_channels_last_(trained("conditional frame"))
    buffer = torch.cat([parameter.data.flatten() for parameter in generator.parameters()])
    start = 0
    for parameter in generator.parameters():
        shape = parameter.data.movedim(1, -1).shape if parameter.dim() > 1 else parameter.shape
        part = buffer[start : start + parameter.numel()].view(shape)
        parameter.data = part.movedim(-1, 1) if parameter.dim() > 1 else part
        start += parameter.numel()
    state = load(to_safetensors(generator, {}))
    assert all(torch.equal(state[name], tensor) for name, tensor in generator.state_dict().items())


def test_every_format_tells_how_to_call_the_generator(tmp_path):
    facts = describe(untrained("conditional frame"))
    assert facts == {
        "latent_distribution": "uniform in (-1, 1)",
        "latent_dim": "12",
        "windows": "1",
        "classes": "3",
        "channels": "3",
        "frames": "8",
        "image_size": "16",
        "video_range": "[-1, 1]",
    }
    longer = describe(untrained("conditional frame"), 21)
    assert (longer["windows"], longer["frames"]) == ("4", "21")
    assert describe(untrained("gru"))["latent_distribution"] == "normal, of mean 0 and variance 1"
    safe, model, program = (exported("conditional frame", name)[1] for name in ("safetensors", "onnx", "torch-export"))
    (tmp_path / "x.safetensors").write_bytes(safe)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **facts}
    assert {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props} == facts
    extra = {"metadata.json": ""}
    torch.export.load(io.BytesIO(program), extra_files=extra)
    assert json.loads(extra["metadata.json"]) == facts


def test_an_onnx_model_is_valid_and_has_no_batch_norms_and_nothing_of_this_package():
    _, content = exported("conditional frame", "onnx")
    assert b"tgan_fast" not in content
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("file_format", ["onnx", "torch-export"])
def test_files_do_not_tell_where_they_were_made(file_format):
    _, content = exported("conditional frame", file_format)
    for file in (exporting.__file__, torch.__file__):
        assert str(Path(file).parent).encode() not in content


@pytest.mark.parametrize("file_format", FORMATS.values(), ids=FORMATS)
def test_exporting_is_quiet_and_only_reads_the_generator(file_format, capfd):
    generator = untrained("gray")
    before = copy.deepcopy(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file_format.write(generator, describe(generator))
    assert capfd.readouterr() == ("", "")
    assert [module.training for module in generator.modules()] == [module.training for module in before.modules()]
    assert all(parameter.requires_grad for parameter in generator.parameters())
    for got, expected in zip(generator.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_package_that_is_not_installed_is_named(package, monkeypatch):
    FORMATS["onnx"].check_packages()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"files need {package}: run pip install '\.\[export\]'"):
        FORMATS["onnx"].check_packages()
    for name in ("safetensors", "torch-export"):
        FORMATS[name].check_packages()
