"""What the commands do once their options are right: the part of them that needs PyTorch and other libraries."""
