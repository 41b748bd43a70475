#!/bin/sh
# Train on several GPUs of one machine, one process for each; on CPUs too, which is a way to try it.
#
#     sh several_gpus.sh 8 --data ucf                                               # the paper's model on 8 GPUs
#     sh several_gpus.sh 2 --preset tiny --device cpu --batch-size 8 --steps 20     # two processes on a CPU
#
# The first argument is the number of processes; the others are settings of `python -m tgan_fast.train`, and override
# the ones below. With a batch of 32 videos for each process and synchronized batch norm they train what one GPU would
# with the whole batch. The same command resumes a run that was interrupted. The second line takes half a minute; it
# leaves the run folder runs/several-gpus, and prints its newest samples and the commands that come next.
set -eu
processes=$1
shift
exec torchrun --standalone --nproc-per-node "$processes" -m tgan_fast.train \
    --sync-batch-norm --batch-size $((32 * processes)) --out runs/several-gpus --resume auto "$@"
