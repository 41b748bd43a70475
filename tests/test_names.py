"""One name, one thing: no two public classes or functions of the package share a name, and no two modules."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "tgan_fast"
# Names that several modules define on purpose, with the reason.
ALLOWED = {
    "Discriminator": "the eager reference has TGAN's networks under their own names, to be read beside the fast ones",
    "Generator": "as Discriminator",
    "TemporalGenerator": "as Discriminator",
    "main": "the entry of every command",
    "why_not": "in each module of kernels, the reason why they cannot take some tensors",
    # Backends of one operation have its functions' names: the caller takes one of the modules.
    "gradient_sums": "batch norm in Triton, in PyTorch, and of no values",
    "input_gradient": "as gradient_sums",
    "normalize": "as gradient_sums",
    "statistics": "as gradient_sums",
    "train": "batch norm in Triton and in C++",
    "evaluate": "as train",
    "backward": "as train",
    "channels_dtype": "as train",
    "rmsprop": "the optimizer in Triton and in C++",
    "adam": "as rmsprop",
    "extension": "the loader of each extension",
    "choose": "the backend of an operation, and the algorithm of a convolution",
    "read_windows": "the operation, and its Triton kernel's launcher",
    "tanh_to_levels": "the operation, and its Triton kernel's launcher",
}
ALLOWED_MODULES = {
    "train": "`python -m tgan_fast.train` is the command of cli/train.py",
    "triton": "the kernels of each operation in Triton",
    "cpu": "the kernels of each operation in C++",
    "torch_impl": "an operation in PyTorch's own operations, as batch norm and clipping have it",
}


def test_public_classes_and_functions_have_names_of_their_own():
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in ALLOWED} == {}
    assert ALLOWED.keys() <= shared.keys(), "a name that is no longer shared needs no reason"


def test_modules_have_names_of_their_own():
    places = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.parent.name if path.name == "__init__.py" else path.stem
        places[module].append(str(path.relative_to(PACKAGE)))
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in ALLOWED_MODULES} == {}
    assert ALLOWED_MODULES.keys() <= shared.keys()
