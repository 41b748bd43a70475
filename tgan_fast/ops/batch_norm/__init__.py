"""What `batch_norm_act` is made of: kernels and their launch on a GPU, the CPU's way, statistics across processes."""
