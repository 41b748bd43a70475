"""Allowed values of options in command lines and configs. This module does not import PyTorch."""

from typing import Literal

Precision = Literal["bf16", "tf32", "fp32"]
PrecisionOption = Literal["auto", Precision]
CudaGraphMode = Literal["auto", "on", "off"]
ExportFormat = Literal["safetensors", "onnx", "torch-export"]
WeightsOption = Literal["auto", "live", "ema"]
ShortVideos = Literal["skip", "loop"]
Backend = Literal["auto", "triton", "cpu", "torch"]
ActivationName = Literal["leaky_relu", "relu6", "silu", "gelu_tanh", "hardswish"]
TritonBackend = Literal["auto", "triton", "torch"]
ClippingBackend = Literal["auto", "cuda", "cuda-float64", "gemm", "eigh", "svd"]
ClippingAccuracy = Literal["exact", "fast"]
Transform = Literal["color", "translation", "cutout"]
