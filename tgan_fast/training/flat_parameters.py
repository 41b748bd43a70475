"""The parameters of a network in one flat tensor, with flat tensors for their gradients and a narrower copy."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

# In bytes: every parameter begins at a cache line, which suits vector loads too.
_ALIGNMENT = 64


class FlatParameters:
    """Parameters in one flat tensor, so that one kernel updates and one all-reduce averages all of them.

    Each parameter becomes a view of that tensor, with the shape and strides that it had. It remains a view while it is
    only written in place, as `load_state_dict` and optimizers do. `Module.to` and assignments to `.data` move it out.

    Args:
        parameters: Parameters of one floating-point dtype and device, each dense in any memory format, each given once.
        copy_dtype: Dtype of a copy of the data; None: there is no copy.
        allreduce_extra: Number of further elements that are averaged over the processes together with the gradients.

    Attributes:
        parameters: List of the parameters.
        starts: Index of the first element of each parameter in the flat tensors, followed by their length n.
        data: Parameters, [n], with zeros between them.
        gradient: Gradients, [n], in the dtype of the parameters.
        allreduce_extra: Further elements to average, in the same dtype.
        allreduce_buffer: `gradient` and `allreduce_extra` as one tensor.
        copy: Copy of the data in `copy_dtype`, [n], or None. Optimizers keep it up to date; after other changes call
            `refresh_copy`.

    Raises:
        ValueError: There are no parameters, or they do not meet the conditions above.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], copy_dtype: torch.dtype | None = None, *, allreduce_extra: int = 0
    ) -> None:
        self.parameters = list(parameters)
        _check(self.parameters)
        first = self.parameters[0]
        self.starts = _aligned_starts(self.parameters, _ALIGNMENT // first.element_size())
        self.data = first.new_zeros(self.starts[-1])
        self.allreduce_buffer = self.data.new_zeros(self.starts[-1] + allreduce_extra)
        self.gradient, self.allreduce_extra = self.allreduce_buffer.split([self.starts[-1], allreduce_extra])
        self._data_views, self._gradient_views = self.views(self.data), self.views(self.gradient)
        for parameter, view in zip(self.parameters, self._data_views, strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.copy = None if copy_dtype is None else self.data.to(copy_dtype)

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return views of a flat tensor [n] of any dtype, with the shapes and strides of the parameters."""
        if flat.shape != self.data.shape or not flat.is_contiguous():
            raise ValueError(f"views need a contiguous tensor {list(self.data.shape)}, not {list(flat.shape)}")
        return [
            flat[start : start + parameter.numel()].as_strided(parameter.shape, parameter.stride())
            for start, parameter in zip(self.starts, self.parameters, strict=False)
        ]

    def refresh_copy(self) -> None:
        """Round the parameters into `copy`, if there is one."""
        if self.copy is not None:
            self.copy.copy_(self.data)

    @torch.no_grad()
    def gather(self, sources: Sequence[nn.Parameter] | None = None, *, smaller_than: float = math.inf) -> None:
        """Copy the gradients of `sources` into `gradient`, in one launch for each of their dtypes.

        Afterwards `.grad` of a parameter is its view of `gradient`, or None where the source has no gradient, and the
        sources have no gradients of their own. `gradient` is overwritten, not added to.

        Args:
            sources: Parameters of the same shapes, in any dtype; None: the parameters themselves.
            smaller_than: Limit on the number of elements; parameters with this many or more are left out. By default
                none is.
        """
        sources = self.parameters if sources is None else sources
        copies: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for parameter, source, view in zip(self.parameters, sources, self._gradient_views, strict=True):
            gradient = source.grad
            if parameter.numel() >= smaller_than or gradient is view:
                continue
            source.grad = None
            parameter.grad = None if gradient is None else view
            if gradient is not None:
                targets, values = copies.setdefault(gradient.dtype, ([], []))
                targets.append(view)
                values.append(_match_strides(view, gradient))
        for targets, values in copies.values():
            torch._foreach_copy_(targets, values)

    def gathered(self, index: int) -> bool:
        """Return whether the gradient of a parameter is in `gradient`."""
        return self.parameters[index].grad is self._gradient_views[index]

    def gradient_row(self, index: int) -> torch.Tensor:
        """Return the gradient of a parameter, flat and in the order of `data`; a view unless strides differ."""
        gradient = _match_strides(self._gradient_views[index], self.parameters[index].grad)
        return gradient.as_strided((gradient.numel(),), (1,))

    def check(self) -> None:
        """Raise a RuntimeError unless every parameter is still a view of `data`."""
        for index, (parameter, view) in enumerate(zip(self.parameters, self._data_views, strict=True)):
            if parameter.data_ptr() != view.data_ptr():
                raise RuntimeError(
                    f"parameter {index} was moved out of its flat tensor: move the network first, then make its "
                    f"FlatParameters and optimizer"
                )


def _check(parameters):
    if not parameters:
        raise ValueError("there are no parameters to lay out")
    if len(set(parameters)) < len(parameters):
        raise ValueError("a parameter is given twice: list each once, as Module.parameters() does")
    first = parameters[0]
    for index, parameter in enumerate(parameters):
        if not parameter.is_floating_point():
            raise ValueError(f"parameter {index} must be floating-point and is {parameter.dtype}")
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            raise ValueError(
                f"parameter {index} is {parameter.dtype} on {parameter.device}, but the first is {first.dtype} on "
                f"{first.device}: all must have one dtype and device"
            )
        # `empty_like` keeps strides only if the tensor is dense.
        if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
            raise ValueError(f"parameter {index} has gaps or overlaps in memory: assign it .data.contiguous()")


def _aligned_starts(parameters, alignment):
    starts = [0]
    for parameter in parameters:
        starts.append(starts[-1] + -(-parameter.numel() // alignment) * alignment)
    return starts


def _match_strides(view, gradient):
    """Return the gradient with the strides of the view, as a copy only where they differ.

    Autograd matches strides except in dimensions of size 1, where they mean nothing. But different strides make
    `_foreach_copy_` copy one tensor after another, even if they mean nothing.
    """
    if gradient.shape != view.shape:
        raise ValueError(f"a gradient is {list(gradient.shape)}, but its parameter is {list(view.shape)}")
    strides = zip(view.shape, gradient.stride(), view.stride(), strict=True)
    if any(a != b for size, a, b in strides if size != 1):
        return torch.empty_like(view, dtype=gradient.dtype).copy_(gradient)
    return gradient if gradient.stride() == view.stride() else gradient.as_strided(view.shape, view.stride())
