#!/bin/sh
# Train on several GPUs of one machine with one process for each GPU; to try it, CPUs work too.
#
#     sh several_gpus.sh 8 --data ucf                                               # the paper's model on 8 GPUs
#     sh several_gpus.sh 2 --preset tiny --device cpu --batch-size 8 --steps 20     # two processes on a CPU
#
# The first argument is the number of processes. The others are settings of `python -m tgan_fast.train`, and override
# the ones below. By default each process gets 32 videos of a batch. Batch norm is synchronized, so training is the same
# as on one GPU with the whole batch, up to rounding. The same command resumes an interrupted run. The second command
# above takes half a minute. The run folder is runs/several-gpus; its newest samples and the next commands are printed.
set -eu
processes=$1
shift
exec torchrun --standalone --nproc-per-node "$processes" -m tgan_fast.train \
    --sync-batch-norm --batch-size $((32 * processes)) --out runs/several-gpus --resume auto "$@"
