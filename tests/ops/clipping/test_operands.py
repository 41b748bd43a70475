"""Matrices of singular value clipping: batches, other rows, thresholds, shared memory, sharded weights."""

import pytest
import torch
import torch.distributed as dist
from support.spectra import clipped_by_svd, relative_error
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard, distribute_tensor

from tgan_fast.ops import singular_value_clip, singular_value_clip_

BACKENDS = ["svd", "eigh", "gemm"]


def random(*shape):
    return 3 * torch.randn(*shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_matrix_of_a_batch_is_clipped_by_itself(backend, device):
    for shape, batch_dims in [((3, 5, 8), 1), ((2, 3, 8, 5), 2), ((2, 4, 3, 2, 2), 1), ((4, 6), 1)]:
        weight = random(*shape).to(device)
        got = singular_value_clip(weight, 0.7, batch_dims=batch_dims, backend=backend)
        matrices = weight.flatten(0, batch_dims - 1)
        expected = torch.stack(
            [clipped_by_svd(matrix[None] if matrix.dim() == 1 else matrix, 0.7) for matrix in matrices]
        )
        assert relative_error(got.reshape(expected.shape), expected) <= 2e-6, shape


def test_a_single_tensor_is_one_matrix_and_not_a_list_of_rows():
    weight = random(5, 5)
    clipped = weight.clone()
    singular_value_clip_(clipped)
    assert relative_error(clipped, clipped_by_svd(weight, 1.0)) <= 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_dim_selects_the_rows(backend, device):
    layer = nn.ConvTranspose2d(6, 4, 3).to(device)
    nn.init.normal_(layer.weight)
    for out_dim in (0, 1, 3):
        rows = layer.weight.detach().movedim(out_dim, 0)
        expected = clipped_by_svd(rows, 1.0).movedim(0, out_dim)
        got = singular_value_clip(layer.weight, out_dim=out_dim, backend=backend)
        assert relative_error(got.detach(), expected) <= 2e-6, out_dim
        in_place = layer.weight.detach().clone(memory_format=torch.channels_last)
        copy = torch.empty_like(in_place, dtype=torch.bfloat16)
        singular_value_clip_(in_place, out_dim=out_dim, copies=copy, backend=backend)
        assert relative_error(in_place, expected) <= 2e-6, out_dim
        assert torch.equal(copy, in_place.bfloat16())


def test_out_dim_is_counted_after_the_batch():
    weight = random(2, 3, 4, 5)
    got = singular_value_clip(weight, batch_dims=1, out_dim=2)
    expected = [clipped_by_svd(matrix.movedim(2, 0), 1.0).movedim(0, 2) for matrix in weight]
    assert relative_error(got, torch.stack(expected)) <= 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_weight_has_its_own_threshold(backend, device):
    weights = [random(4, 6).to(device), random(7, 3).to(device), random(2, 5, 5).to(device)]
    thresholds = [0.3, 1, 2.5]
    expected = [clipped_by_svd(weight, threshold) for weight, threshold in zip(weights, thresholds, strict=True)]
    for given in (thresholds, tuple(thresholds)):
        clipped = [weight.clone() for weight in weights]
        singular_value_clip_(clipped, given, backend=backend)
        for got, wanted in zip(clipped, expected, strict=True):
            assert relative_error(got, wanted) <= 2e-6
    batch = random(3, 4, 6).to(device)
    singular_value_clip_([batch, weights[0]], [0.5, 9.0], batch_dims=1, backend=backend)
    assert torch.linalg.matrix_norm(batch, 2).tolist() == pytest.approx([0.5] * 3, rel=1e-5)


def test_a_weight_that_is_listed_again_has_the_smallest_of_its_thresholds():
    for thresholds in ([2.0, 0.5, 1.0], [0.5, 2.0, 1.0], [2.0, 1.0, 0.5]):
        weight = random(4, 6)
        expected = clipped_by_svd(weight, 0.5)
        copies = [torch.empty_like(weight), None, torch.empty_like(weight)]
        singular_value_clip_([weight, weight, weight.detach()], thresholds, copies=copies)
        assert relative_error(weight, expected) <= 1e-7
        assert torch.equal(copies[0], weight)
        assert torch.equal(copies[2], weight)


def test_different_weights_that_share_elements_are_refused_and_interleaved_ones_clipped():
    memory = random(20, 30)
    sharing = [
        [memory[:12], memory[10:]],
        [memory, memory[3:5]],
        [memory, memory.mT],
        [memory[:, ::2], memory[:, ::3]],
        [memory, memory[:1], memory[0, 4:9]],
        [memory.view(-1), memory],
    ]
    before = memory.clone()
    for weights in sharing:
        with pytest.raises(ValueError, match=r"two weights, \[.*\] and \[.*\], share elements: pass them to separate"):
            singular_value_clip_(weights)
    assert torch.equal(memory, before)
    apart = [memory[:, ::2], memory[:9, 1::2], memory[9:, 1::2]]
    expected = [clipped_by_svd(weight, 1.0) for weight in apart]
    singular_value_clip_(apart)
    for got, wanted in zip(apart, expected, strict=True):
        assert relative_error(got, wanted) <= 1e-7


def test_a_generator_is_read_once():
    layers = [nn.Linear(4, 6), nn.Linear(6, 3)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=3)
    singular_value_clip_(layer.weight for layer in layers)
    assert [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in layers] == pytest.approx([1, 1], rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (
            torch.ones(2, 2, dtype=torch.complex64),
            {},
            "or bfloat16, not torch.complex64",
        ),
        (torch.ones(2, 2, dtype=torch.int64), {}, "or bfloat16, not torch.int64"),
        (torch.ones(3, 0), {}, r"needs a matrix with elements, not \[3, 0\]"),
        (torch.ones(0, 3, 3), {"batch_dims": 1}, r"needs a matrix with elements, not \[0, 3, 3\]"),
        (torch.ones(3, 3), {"batch_dims": 2}, r"batch_dims=2 and out_dim=0 need a weight of at least 3 dimensions"),
        (torch.ones(3, 3), {"batch_dims": 1, "out_dim": 1}, r"need a weight of at least 3 dimensions, not \[3, 3\]"),
        (torch.ones(3, 3), {"batch_dims": -1}, "batch_dims must be a whole number, 0 or more, not -1"),
        (torch.ones(3, 3), {"out_dim": True}, "out_dim must be a whole number, 0 or more, not True"),
        (torch.ones(3, 3), {"out_dim": 1.0}, "out_dim must be a whole number, 0 or more, not 1.0"),
    ],
)
def test_bad_weights_and_dimensions_are_named(weight, options, message):
    with pytest.raises(ValueError, match=message):
        singular_value_clip(weight, **options)
    first = torch.full((4, 4, 4), 5.0)
    with pytest.raises(ValueError, match=message):
        singular_value_clip_([first, weight], **options)
    assert (first == 5).all()


@pytest.mark.parametrize(
    ("thresholds", "error", "message"),
    [
        ([1.0], ValueError, "2 weights, but 1 thresholds"),
        ([1.0, 1.0, 1.0], ValueError, "2 weights, but 3 thresholds"),
        ([1.0, 0.0], ValueError, "max_singular_value must be a number from 1.18e-38 to 3.4e"),
        ([1.0, float("inf")], ValueError, "not inf"),
        ([float("nan"), 1.0], ValueError, "not nan"),
        ([1.0, "1"], TypeError, "max_singular_value must be a number"),
        (torch.ones(2), TypeError, "max_singular_value must be a number"),
        ((value for value in (1.0, 1.0)), TypeError, "max_singular_value must be a number"),
    ],
)
def test_bad_thresholds_are_named_before_any_weight_changes(thresholds, error, message):
    weights = [random(3, 4), random(4, 3)]
    before = [weight.clone() for weight in weights]
    with pytest.raises(error, match=message):
        singular_value_clip_(weights, thresholds)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_dtensor_is_refused_with_a_remedy_that_works(one_process):
    weight = distribute_tensor(random(6, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
    expected = clipped_by_svd(weight.full_tensor(), 1.0)
    for clip in (singular_value_clip, singular_value_clip_):
        with pytest.raises(ValueError, match=r"a weight is a DTensor, .*: clip full = weight.full_tensor\(\), then"):
            clip(weight)
    full = weight.full_tensor()
    singular_value_clip_(full)
    weight.copy_(distribute_tensor(full, weight.device_mesh, weight.placements))
    assert relative_error(weight.full_tensor(), expected) <= 1e-7


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_flat_parameter_of_fsdp_is_refused_with_a_remedy_that_works(one_process):
    layer = nn.Linear(6, 4)
    nn.init.normal_(layer.weight)
    expected = clipped_by_svd(layer.weight.detach(), 1.0)
    sharded = FullyShardedDataParallel(layer, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"sharded by FSDP, .*: clip it inside FullyShardedDataParallel.summon_full"):
        singular_value_clip_(list(sharded.parameters()))
    with FullyShardedDataParallel.summon_full_params(sharded):
        singular_value_clip_(layer.weight)
    with FullyShardedDataParallel.summon_full_params(sharded):
        assert relative_error(layer.weight.detach(), expected) <= 1e-7
