"""The PyTorch notebook's checkpoint."""

import torch

from tgan_fast import reference


def notebook_checkpoint(path):
    """Write a file as the PyTorch notebook saves it after one iteration, and return its two networks."""
    generator, discriminator = reference.Generator(), reference.Discriminator()
    optimizers = reference.make_optimizers(generator, discriminator)
    z = torch.rand(2, 100)
    reference.training_iteration(generator, discriminator, *optimizers, torch.rand(2, 3, 16, 64, 64), z, z, 1)
    content = {
        "epoch": 81_000,
        "model_state_dict": [generator.state_dict(), discriminator.state_dict()],
        "optimizer_state_dict": [optimizer.state_dict() for optimizer in optimizers],
    }
    torch.save(content, path)
    return generator, discriminator
