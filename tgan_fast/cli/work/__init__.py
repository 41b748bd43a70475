"""The work of the commands, after their options are checked: the part that needs PyTorch and other libraries."""
