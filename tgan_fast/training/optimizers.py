"""RMSprop and Adam over flat parameters: one launch per step, with state dicts in PyTorch's format."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Any

import torch

from tgan_fast.ops import adam_, rmsprop_
from tgan_fast.training.flat_parameters import FlatParameters

# Options of PyTorch's optimizers that are not supported here.
_REFUSED = ("momentum", "centered", "weight_decay", "amsgrad", "maximize")
# Options of PyTorch's implementations that do not change the numbers.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# Number of elements below which a CPU copies a gradient faster than it starts the operations of a step.
_LARGE = 1 << 17


class FlatOptimizer(torch.optim.Optimizer):
    """Base of `RMSprop` and `Adam`.

    A step updates the whole network at once if its gradients were gathered (`FlatParameters.gather`). Otherwise it
    gathers them itself, except that on a CPU it reads gradients of large parameters where autograd left them.
    Parameters without a gradient do not change. The step also writes the copy of the flat parameters, if there is one.

    A step can be captured in a CUDA graph: steps are counted on the device, and memory never moves, not even in
    `load_state_dict`. A graph fixes the numbers in `param_groups`, except for a learning rate that
    `set_learning_rate` has changed before the capture.

    `state` has PyTorch's entries for every parameter, as views of flat tensors. `state_dict` and `load_state_dict` use
    the format of PyTorch's optimizer of the same name, of any version, memory format and device.

    Args:
        flat: Parameters.
        torchs_own: PyTorch's optimizer of the same parameters, which checks the options and holds the defaults.
    """

    _AVERAGES: tuple[str, ...]

    def __init__(self, flat: FlatParameters, torchs_own: torch.optim.Optimizer):
        # PyTorch's own optimizer expects all of its options in a state that it loads.
        super().__init__(flat.parameters, torchs_own.defaults)
        self._flat = flat
        self._learning_rate: torch.Tensor | None = None
        self._averages = {name: torch.zeros_like(flat.data) for name in self._AVERAGES}
        self._steps = torch.zeros(len(flat.parameters), dtype=torch.float32, device=flat.data.device)
        self._set_steps([0.0] * len(flat.parameters))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the only parameter group; the constructor calls this."""
        if self.param_groups:
            raise ValueError("flat parameters are one group: no other can be added")
        super().add_param_group(param_group)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate from the next step on; a GPU reads it from memory, so that CUDA graphs follow it."""
        (group,) = self.param_groups
        group["lr"] = learning_rate
        if self._flat.data.is_cuda:
            if self._learning_rate is None:
                self._learning_rate = torch.empty((), device=self._flat.data.device)
            self._learning_rate.fill_(learning_rate)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step, after calling the closure if there is one, and return its result."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        flat = self._flat
        flat.check()
        given = [parameter.grad is not None for parameter in flat.parameters]
        flat.gather(smaller_than=_LARGE if flat.data.is_cpu else math.inf)
        for first, end in self._runs_of_equal_steps(given):
            self._steps[first:end].add_(1)
            for part, gradient in self._slices(first, end):
                averages = [average[part] for average in self._averages.values()]
                copy = None if flat.copy is None else flat.copy[part]
                self._update(flat.data[part], gradient, averages, self._steps[first], copy)
            torch.autograd.graph.increment_version(flat.parameters[first:end])
        return loss

    def _update(self, parameter, gradient, averages, step, copy):
        raise NotImplementedError

    def _rate(self):
        return self.param_groups[0]["lr"] if self._learning_rate is None else self._learning_rate

    def _runs_of_equal_steps(self, given):
        """Return the first index and the end of every run of parameters with gradients and equal step counts."""
        # Parameters that were once apart stay apart: the host does not know how many steps a CUDA graph has done.
        for index in range(1, len(given)):
            self._apart[index] |= given[index] != given[index - 1]
        bounds = [*(index for index, apart in enumerate(self._apart) if apart), len(given)]
        return [(first, end) for first, end in pairwise(bounds) if given[first]]

    def _slices(self, first, end) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the slices in which a run of parameters is updated, and the gradient of each."""
        flat = self._flat
        for gathered, group in groupby(range(first, end), flat.gathered):
            indices = list(group)
            if gathered:
                part = slice(flat.starts[indices[0]], flat.starts[indices[-1] + 1])
                yield part, flat.gradient[part]
                continue
            for index in indices:
                row = flat.gradient_row(index)
                yield slice(flat.starts[index], flat.starts[index] + len(row)), row

    def state_dict(self) -> dict[str, Any]:
        """Return the state that PyTorch's optimizer would have, in new tensors. Waits for the GPU."""
        saved, steps = super().state_dict(), self._steps.tolist()
        saved["state"] = {
            index: {name: value.cpu().clone() if name == "step" else value.clone() for name, value in entry.items()}
            for index, entry in saved["state"].items()
            if steps[index] > 0
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or of PyTorch's optimizer, with its learning rate.

        Raises:
            ValueError: The state belongs to other parameters, to another optimizer or to an unsupported variant;
                nothing has changed then.
        """
        self._check_saved(state_dict)
        super().load_state_dict(state_dict)
        (group,) = self.param_groups
        own = {name: value for name, value in self.defaults.items() if name in _IMPLEMENTATION or name not in group}
        group.update(own, lr=float(group["lr"]))
        loaded = [self.state.get(parameter) for parameter in self._flat.parameters]
        for name, average in self._averages.items():
            for view, entry in zip(self._flat.views(average), loaded, strict=True):
                view.copy_(entry[name]) if entry else view.zero_()
        self._set_steps([float(entry["step"]) if entry else 0.0 for entry in loaded])

    def _set_steps(self, steps):
        self._steps.copy_(torch.tensor(steps))
        # Whether the number of steps of a parameter differs, or may differ, from that of the parameter before it.
        self._apart = [True, *(a != b for a, b in zip(steps[1:], steps, strict=False))]
        averages = zip(*(self._flat.views(average) for average in self._averages.values()), strict=True)
        self.state = defaultdict(dict)
        for parameter, step, views in zip(self._flat.parameters, self._steps, averages, strict=True):
            self.state[parameter] = {"step": step, **dict(zip(self._averages, views, strict=True))}

    def _check_saved(self, saved):
        groups, parameters = saved["param_groups"], self._flat.parameters
        counts = [len(group["params"]) for group in groups]
        if counts != [len(parameters)]:
            raise ValueError(f"the state has groups of {counts} parameters, but needs one group of {len(parameters)}")
        for name in _REFUSED:
            if groups[0].get(name):
                raise ValueError(f"the state is of an optimizer with {name}, which is not supported")
        for index, (key, parameter) in enumerate(zip(groups[0]["params"], parameters, strict=True)):
            entry = saved["state"].get(key)
            for name in ("step", *self._AVERAGES) if entry else ():
                if name not in entry:
                    raise ValueError(f"the state of parameter {index} has no {name}: another optimizer saved it")
                if name != "step" and entry[name].shape != parameter.shape:
                    shapes = f"{list(entry[name].shape)}, but the parameter is {list(parameter.shape)}"
                    raise ValueError(f"{name} of parameter {index} is {shapes}")


class RMSprop(FlatOptimizer):
    """torch.optim.RMSprop without momentum, centering and weight decay.

    Args:
        flat: Parameters.
        lr, alpha, eps: Options of torch.optim.RMSprop.
    """

    _AVERAGES = ("square_avg",)

    def __init__(self, flat: FlatParameters, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8):
        super().__init__(flat, torch.optim.RMSprop(flat.parameters, lr=lr, alpha=alpha, eps=eps))

    def _update(self, parameter, gradient, averages, step, copy):
        (group,) = self.param_groups
        options = {"learning_rate": self._rate(), "alpha": group["alpha"], "eps": group["eps"]}
        rmsprop_(parameter, gradient, *averages, copy=copy, **options)


class Adam(FlatOptimizer):
    """torch.optim.Adam without AMSGrad and weight decay.

    Args:
        flat: Parameters.
        lr, betas, eps: Options of torch.optim.Adam.
    """

    _AVERAGES = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, flat: FlatParameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ):
        super().__init__(flat, torch.optim.Adam(flat.parameters, lr=lr, betas=betas, eps=eps))

    def _update(self, parameter, gradient, averages, step, copy):
        (group,) = self.param_groups
        beta1, beta2 = group["betas"]
        options = {"learning_rate": self._rate(), "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        adam_(parameter, gradient, *averages, step, copy=copy, **options)
