"""The names that options choose from, for command lines and configs: this module imports no PyTorch."""

from typing import Literal

Precision = Literal["bf16", "tf32", "fp32"]
PrecisionOption = Literal["auto", Precision]
CudaGraphMode = Literal["auto", "on", "off"]
ExportFormat = Literal["safetensors", "onnx", "torch-export"]
ShortVideos = Literal["skip", "loop"]
