"""The checkpoint of the PyTorch notebook, state_normal81000.ckpt: sample from it, and train it further.

`open_checkpoint` and `train` read the notebook's file unchanged, and execute no code in it. On the command line:

    python -m tgan_fast sample --checkpoint state_normal81000.ckpt --out videos.gif
    python -m tgan_fast.train --resume state_normal81000.ckpt --steps 100000 --data ucf --out runs/resumed

The same in Python, as a first try with small batches and few iterations:

    python resume_notebook.py state_normal81000.ckpt [CLIP_STORE]

Takes 30 seconds on one CPU thread; uses a GPU if there is one. CLIP_STORE is a folder made by `python -m tgan_fast
prepare`; without it the data are moving digits. Writes notebook.gif and the run folder runs/resumed, which must not
hold a run yet.
"""

import sys
from pathlib import Path

import tgan_fast
from tgan_fast.models.sampling import draw_latents
from tgan_fast.training.checkpoint import open_checkpoint
from tgan_fast.video_files import write_videos

MORE_ITERATIONS = 2
BATCH = 4  # the notebook's is 32

path = Path(sys.argv[1])
checkpoint = open_checkpoint(path)
generator = checkpoint.generator()  # in evaluation mode, on the CPU
clips = tgan_fast.Sampler(generator)(draw_latents(4, generator.latent_dim, seed=0))
write_videos(Path("notebook.gif"), clips.numpy())
print(f"iteration {checkpoint.iteration:,}: notebook.gif shows clips {list(clips.shape)}")

config = tgan_fast.TrainingConfig(  # the other settings are the notebook's by default
    data=sys.argv[2] if len(sys.argv) > 2 else None, batch_size=BATCH, steps=checkpoint.iteration + MORE_ITERATIONS
)
step = tgan_fast.train(config, Path("runs/resumed"), resume=path)
print(f"trained on {step.device} to iteration {step.iteration:,}: runs/resumed")
