"""Spectral normalization: weights divided by their largest singular value in every forward pass.

PyTorch's own is a parametrization as well, but computes in the dtype of the weights, which is too coarse in bfloat16.
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from tgan_fast.nn import WEIGHTED


class SpectralNorm(nn.Module):
    """W ↦ W / σ(W), for W as the matrix [out, everything else] (Miyato et al., arXiv:1802.05957).

    σ = uᵀWv, where a power iteration keeps u and v near the singular vectors whenever W is used in training.

    Args:
        weight: Weight that the normalized one replaces.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        matrix = weight.detach().flatten(1).double()
        # The exact vectors, because power iterations from others would take long.
        u = torch.linalg.eigh(matrix @ matrix.t())[1][:, -1]
        self.register_buffer("u", u.float())
        self.register_buffer("v", F.normalize(matrix.t().mv(u), dim=0).float())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        if self.training:
            self._iterate(matrix.detach())
        # Copies, because the next call changes the vectors, which the backward of this one still needs.
        u, v = self.u.to(matrix.dtype, copy=True), self.v.to(matrix.dtype, copy=True)
        return (weight / u.dot(matrix.mv(v))).to(weight.dtype)

    @torch.no_grad()
    def _iterate(self, matrix):
        u, v = self.u.to(matrix.dtype), self.v.to(matrix.dtype)
        v = F.normalize(matrix.t().mv(u), dim=0)
        self.u.copy_(F.normalize(matrix.mv(v), dim=0))
        self.v.copy_(v)


_ORIGINAL, _VECTORS = ".parametrizations.weight.original", ".parametrizations.weight.0."


def without_spectral_norm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict with the normalized weights in place of their parametrizations."""
    plain = {name: tensor for name, tensor in state.items() if ".parametrizations.weight." not in name}
    for name, weight in state.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            norm = SpectralNorm(weight)
            norm.load_state_dict({vector: state[f"{layer}{_VECTORS}{vector}"] for vector in ("u", "v")})
            plain[f"{layer}.weight"] = norm.eval()(weight)
    return plain


def with_spectral_norm(state: Mapping[str, torch.Tensor], layers: Collection[str]) -> dict[str, torch.Tensor]:
    """Return a state dict in which the weights of `layers`, as far as it has them, are parametrized."""
    parametrized = dict(state)
    for layer in layers:
        weight = parametrized.pop(f"{layer}.weight", None)
        if weight is not None:
            vectors = SpectralNorm(weight).state_dict()
            parametrized[f"{layer}{_ORIGINAL}"] = weight
            parametrized |= {f"{layer}{_VECTORS}{name}": vector for name, vector in vectors.items()}
    return parametrized


def parametrized_layers(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the layers with spectral normalization in a state dict."""
    return [name.removesuffix(_ORIGINAL) for name in state if name.endswith(_ORIGINAL)]


def normalize_spectra_(network: nn.Module) -> None:
    """Parametrize the weights of all convolutions and linear layers, in place.

    In the state dict, `….parametrizations.weight.original` and two vectors replace each `….weight`.
    """
    for module in list(network.modules()):
        if isinstance(module, WEIGHTED):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))
