"""Record of all gradients at every optimizer step."""

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Gradients:
    """Record whose `seen` has a list for every step, in order: the gradients of all parameters, none of them None."""

    def __enter__(self):
        self.seen = []
        self.handle = register_optimizer_step_pre_hook(self.note)
        return self

    def note(self, optimizer, *_):
        (group,) = optimizer.param_groups
        self.seen.append([parameter.grad.clone() for parameter in group["params"]])

    def __exit__(self, *_):
        self.handle.remove()

    def flat(self):
        """Return each list as one tensor, float64 on the CPU."""
        return [torch.cat([gradient.flatten() for gradient in of_step]).double().cpu() for of_step in self.seen]
