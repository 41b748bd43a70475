"""An optimizer of your own that clips the singular values of its updates, beside SGD and Muon, on handwritten digits.

Muon sets all singular values of the momentum to 1. `ClippedMuon` lowers those above a threshold and keeps the others,
the idea of MuCon (Yi, arXiv:2605.26459); below the threshold it is SGD. No experiment of the paper is repeated here.

    python clipped_muon.py

Takes 20 seconds on one CPU thread. Prints the loss on the training images after 200 steps and the accuracy on 500 other
images, as means of three seeds. Each optimizer has the one of four learning rates with the lowest loss (SGD: 0.01 to
0.3; the others: 0.003 to 0.1). The threshold was not tuned. The optimizers hardly differ here.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from tgan_fast.ops import singular_value_clip_


class ClippedMuon(torch.optim.Optimizer):
    def __init__(self, params, lr, threshold, momentum=0.95):
        super().__init__(params, {"lr": lr, "threshold": threshold, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            weights, updates = group["params"], []
            for weight in weights:
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                updates.append(weight.grad.lerp(average, group["momentum"]))
            singular_value_clip_(updates, group["threshold"], accuracy="fast")  # all matrices in one call
            for weight, update in zip(weights, updates, strict=True):
                scale = max(1, weight.shape[0] / weight.shape[1]) ** 0.5  # Muon's
                weight.sub_(update, alpha=group["lr"] * scale / group["threshold"])


digits = load_digits()
images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
test, train = torch.randperm(1797, generator=torch.Generator().manual_seed(0)).split([500, 1297])
for name, create in {
    "SGD": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.95, nesterov=True),
    "Muon": lambda weights: torch.optim.Muon(weights, 0.03, momentum=0.95, weight_decay=0),
    "ClippedMuon": lambda weights: ClippedMuon(weights, 0.03, threshold=0.01),
}.items():
    losses, right = torch.empty(3), torch.empty(3)
    for seed in range(3):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizers = create([*network.parameters()][::2]), torch.optim.AdamW([*network.parameters()][1::2])  # biases
        for batch in train[torch.randint(len(train), (200, 128))]:
            network.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            for optimizer in optimizers:
                optimizer.step()
        logits = network(images).detach()
        losses[seed] = F.cross_entropy(logits[train], labels[train])
        right[seed] = (logits.argmax(1) == labels)[test].float().mean()
    print(f"{name}: loss {losses.mean():.4f}, accuracy {right.mean():.1%} ({right.min():.1%} to {right.max():.1%})")
