"""Which implementations of each operation can run here, and why the others cannot."""

AVAILABLE = "available"

# operation → backend → AVAILABLE, or the reason why it cannot be used
_REGISTRY: dict[str, dict[str, str]] = {
    "batch_norm_act": {
        "torch": AVAILABLE,
        "triton": "the Triton kernels are not part of this version",
    },
    "singular_value_clip": {
        "svd": AVAILABLE,
        "eigh": AVAILABLE,
        "gemm": AVAILABLE,
        "cuda": "the CUDA extension is not part of this version",
    },
}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why."""


def backends() -> dict[str, dict[str, str]]:
    """Every operation with its backends: `"available"`, or the reason why a backend cannot be used."""
    return {operation: dict(states) for operation, states in _REGISTRY.items()}


def require(operation: str, backend: str) -> None:
    """Raise unless `backend` of `operation` can run.

    Raises:
        ValueError: the operation has no backend of that name.
        BackendError: it has one, which cannot run here.
    """
    states = _REGISTRY[operation]
    if backend not in states:
        raise ValueError(f"{operation} has no backend {backend!r}: choose auto, {', '.join(states)}")
    if states[backend] != AVAILABLE:
        raise BackendError(f"{operation}: backend {backend!r} cannot be used: {states[backend]}")
