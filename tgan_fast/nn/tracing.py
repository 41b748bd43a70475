"""Fusion of the batch norms in a module's forward, which torch.fx traces.

Only the forward itself is traced; the modules that it calls stay calls. torch.fx evaluates everything that does not
depend on the arguments while it traces, so a trace holds only as long as that stays the same. Therefore a plan notes
the attributes that forward reads, and a forward that depends on anything else is refused.
"""

import ast
import contextlib
import copy
import dataclasses
import enum
import functools
import gc
import inspect
import math
import operator
import random
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode

from tgan_fast.nn.batch_norm_act import FUSED
from tgan_fast.nn.fused import Unregistered, activation_of, call_fused, is_altered, is_sequential, last_norm
from tgan_fast.ops.batch_norm.activation import IDENTITY, Activation

_MISSING = object()
_INTERNAL = vars(nn.Module()).keys() - {"training"}
_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format, enum.Enum)
_FUNCTION_TYPES = (types.FunctionType, types.BuiltinFunctionType)
# Attributes of a module that depend on all that is in it.
_WHOLE = (
    "parameters", "named_parameters", "buffers", "named_buffers", "state_dict", "modules", "named_modules", "children",
    "named_children", "_parameters", "_buffers", "_modules",
)  # fmt: skip
_LOCK = threading.RLock()
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Modules that change nothing but their own buffers, and draw no random numbers.
_PURE = (
    nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, *FUSED.values(),
)  # fmt: skip
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul")
_FUNCTIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "leaky_relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    F.relu6: "relu6",
    F.silu: "silu",
    F.gelu: "gelu_tanh",
    F.hardswish: "hardswish",
}


class NotFusedError(Exception):
    """Reason why the batch norms of a forward are not fused."""


class Plans(list):
    """Plans of a module, which copies share. In a file they become None, because a file should hold no code."""

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return type(None), ()


class Plan(NamedTuple):
    """A forward with fused batch norms, and what must hold for it to compute what the original one does."""

    names: tuple[str, ...]  # of the arguments
    kinds: tuple[tuple[type, ...], ...]
    attributes: dict[str, Any]
    children: dict[str, tuple]  # of the module and of containers in it, with their classes
    identities: list[str]  # modules that the plan does not call, because they return their input
    forward: Callable

    def fits(self, module: nn.Module, arguments: tuple) -> bool:
        """Return whether the plan computes what the module's own forward would compute."""
        return (
            len(arguments) == len(self.kinds)
            and all(map(isinstance, arguments, self.kinds))
            and all(_is_same(getattr(module, name, _MISSING), value) for name, value in self.attributes.items())
            and all(_children(module.get_submodule(name)) == children for name, children in self.children.items())
            and not any(is_altered(module.get_submodule(name)) for name in self.identities)
            and not (self.identities and nn.modules.module._has_any_global_hook())
        )


class Tracing(NamedTuple):
    """Plans of a module, and what became of the batch norms that its forward calls, by their name in the module."""

    plans: Plans
    fused: dict[str, str]
    left: dict[str, str]


def trace(module: nn.Module) -> Tracing:
    """Return the plans for a module's forward, none if it fuses nothing.

    Raises:
        NotFusedError: The forward cannot be traced.
    """
    cls = getattr(type(module), "_derived_from", type(module))
    if "forward" in vars(module):
        raise NotFusedError("its forward was replaced")
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        raise NotFusedError("its class has a way of its own to be copied")
    if is_parametrized(module):
        raise NotFusedError("it is parametrized")
    _check_code(cls.forward, cls)
    names, result = _required(cls.forward), Tracing(Plans(), {}, {})
    tensors, lists = (dict.fromkeys(names, kind) for kind in ((torch.Tensor,), (list, tuple)))
    # Some forwards take tensors or lists of them, as those of DenseNet do, and some only lists.
    try:
        asked = _add_plans(module, cls, tensors, result)
    except NotFusedError:
        with contextlib.suppress(NotFusedError):
            _add_plans(module, cls, lists, result)
            return result
        raise
    if asked:
        with contextlib.suppress(NotFusedError):
            _add_plans(module, cls, {name: (lists if name in asked else tensors)[name] for name in names}, result)
    return result


def _check_code(function, cls, seen=None):
    """Refuse code that does what a trace cannot show; it includes the methods of the class that it names."""
    seen = set() if seen is None else seen
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return  # the source is not at hand
    for part in ast.walk(tree):
        if isinstance(part, ast.Try):
            raise NotFusedError("it handles exceptions")
        if isinstance(part, (ast.Global, ast.Nonlocal)):
            raise NotFusedError("it changes variables outside of it")
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in ("type", "print"):
            raise NotFusedError(f"it calls {part.func.id}")
        name = part.attr if isinstance(part, ast.Attribute) else None
        method = getattr(cls, name, None) if name is not None and name not in seen else None
        if inspect.isfunction(method) and not method.__module__.startswith("torch."):
            seen.add(name)
            _check_code(method, cls, seen)


def _add_plans(module, cls, kinds, result):
    """Add the plans for arguments of some kinds, in training and in evaluation; return the arguments whose kind counts.

    Arguments whose kind does not count may also be sequences of tensors.
    """
    for training in (module.training, not module.training):
        graph, reads = _trace_twice(module, cls, kinds, training)
        identities = _remove_identities(graph, module)
        fused, left = _fuse(graph, module)
        result.left.update(left)
        result.fused.update(fused)
        if fused:
            either = torch.Tensor, list, tuple
            allowed = tuple(kind if name in reads.kinds else either for name, kind in kinds.items())
            children = _children_of_containers(module)
            forward = type(fx.GraphModule(module, graph)).forward
            result.plans.append(Plan(tuple(kinds), allowed, reads.attributes, children, identities, forward))
        if "training" not in reads.attributes:
            break
    return reads.kinds


def _required(forward):
    """Return the names of the parameters without a default; the others must have theirs for a plan to fit."""
    try:
        _, *parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        raise NotFusedError("it is not a function of self and its arguments") from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in kinds and p.default is p.empty)


def _is_same(now, then):
    return now is then or (type(now) is type(then) and _is_constant(then) and bool(now == then))


def _children_of_containers(module, prefix=""):
    """Return the children of the module and of every container in it, over which forward may iterate."""
    found = {prefix.rstrip("."): _children(module)}
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            found.update(_children_of_containers(child, f"{prefix}{name}."))
    return found


def _children(module):
    """Return the names of a module's children, and the classes that they had before fusion."""
    return tuple((name, getattr(type(child), "_derived_from", type(child))) for name, child in module._modules.items())


class _Reads(NamedTuple):
    """Values that a forward has read and that a trace cannot follow."""

    attributes: dict[str, Any]  # of the module
    kinds: set[str]  # names of arguments whose type it has asked for


def _trace_twice(module, cls, kinds, training):
    """Return the graph of a forward, and what it reads.

    The first trace, without gradients and with autocast, shows whether the forward depends on these.
    """
    with torch.no_grad(), _autocast(True):
        other, _ = _trace(module, cls, kinds, training)
    with torch.enable_grad(), _autocast(False):
        graph, reads = _trace(module, cls, kinds, training)
    if str(other) != str(graph):
        raise NotFusedError("it depends on the mode of autograd or autocast")
    return graph, reads


@contextlib.contextmanager
def _autocast(enabled):
    # Not torch.autocast, which turns itself off for a device that is absent.
    before = [torch.is_autocast_enabled(device) for device in _DEVICES]
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, was_enabled in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, was_enabled)


def _trace(module, cls, kinds, training):
    reads = _Reads({}, set())
    # What forward changes in a list or a dictionary, it changes in a copy.
    own = {name: copy.deepcopy(value) if _is_constant(value) else value for name, value in vars(module).items()}
    tracer = _Tracer(kinds, reads.kinds)
    with _LOCK, _kept_random_states() as drew:
        try:
            probe = object.__new__(_probe_class(cls, reads.attributes))
            vars(probe).update(own, training=training)
            with _NoTensors(), _watched(module):
                graph = tracer.trace(probe)
        except NotFusedError:
            raise
        except Exception as error:  # of the user's forward, which may do anything with what is not a tensor
            first, *_ = str(error).strip().splitlines() or [type(error).__name__]
            raise NotFusedError(f"torch.fx cannot trace it: {first}") from error
        if drew():
            raise NotFusedError("it draws random numbers outside of tensors")
    if not all(_is_same(vars(probe).get(name), then) for name, then in reads.attributes.items() if name in own):
        raise NotFusedError("it changes its own attributes")
    if tracer.has_living_proxies() and gc.collect() and tracer.has_living_proxies():
        raise NotFusedError("it keeps a tensor for later")
    return graph, reads


@contextlib.contextmanager
def _kept_random_states():
    """Restore the states of all random number generators; yield a function that returns whether one has changed."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = _digest(*states)
    try:
        yield lambda: _digest(random.getstate(), np.random.get_state(), torch.get_rng_state()) != before
    finally:
        for restore, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states, strict=True):
            restore(state)


def _digest(of_python, of_numpy, of_torch):
    _, words, *others = of_numpy
    return of_python, words.tobytes(), others, of_torch.numpy().tobytes()


@contextlib.contextmanager
def _watched(module):
    """Refuse what forward does with other modules than call them, and gradients of its own."""
    inner = {id(child) for child in module.modules()}

    def read(self, name):
        value = object.__getattribute__(self, name)
        if id(self) in inner and name not in _INTERNAL and not name.startswith("__") and _caller() != "torch":
            if not inspect.ismethod(value):
                raise NotFusedError(f"it reads {name} of a {type(self).__name__}")
            if not value.__func__.__module__.startswith("torch."):
                raise NotFusedError(f"it calls {name} of a {type(self).__name__}")
        return value

    def write(self, name, value):
        if id(self) in inner:
            raise NotFusedError(f"it sets {name} of a {type(self).__name__}")
        original(self, name, value)

    def refuse(*_, **__):
        raise NotFusedError("it calls a torch.autograd.Function")

    original, apply = nn.Module.__setattr__, vars(torch.autograd.Function)["apply"]
    nn.Module.__getattribute__, nn.Module.__setattr__, torch.autograd.Function.apply = read, write, refuse
    try:
        yield
    finally:
        del nn.Module.__getattribute__
        nn.Module.__setattr__, torch.autograd.Function.apply = original, apply


def _caller():
    """Return the top-level package of the code that called the caller of this function."""
    return sys._getframe(2).f_globals.get("__name__", "").partition(".")[0]


def _probe_class(cls, attributes):
    """Return a subclass of a module's class that notes the attributes that are read, and refuses to set any."""

    class Probe(Unregistered, cls):
        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if name in _WHOLE and _caller() != "torch":
                raise NotFusedError(f"it reads self.{name}")
            if name not in _INTERNAL and not name.startswith("__"):
                own = name in super().__getattribute__("__dict__")
                if own or not (callable(value) or isinstance(getattr(cls, name, None), property)):
                    attributes.setdefault(name, _constant(name, value))
                    if inspect.isfunction(value) and not value.__module__.startswith("torch."):
                        _check_code(value, cls)
            return value

        def __getattr__(self, name):
            try:
                value = super().__getattr__(name)
            except AttributeError:
                attributes[name] = _MISSING
                raise
            if _is_constant(value):  # None for a module or parameter that is absent
                attributes.setdefault(name, value)
            return value

        def __setattr__(self, name, value):
            if name.startswith("_tensor_constant"):  # torch.fx puts it there
                raise NotFusedError("it uses a tensor that is neither a parameter nor a buffer")
            raise NotFusedError(f"it sets self.{name}")

    return Probe


def _constant(name, value):
    """Return a copy of an attribute's value that a later value can be compared with."""
    if _is_constant(value):
        return copy.deepcopy(value)
    parts = (value.func, *value.args, *value.keywords.values()) if isinstance(value, functools.partial) else (value,)
    if all(isinstance(part, (*_FUNCTION_TYPES, *_CONSTANTS)) for part in parts):
        return value
    raise NotFusedError(f"it reads self.{name}, an object of type {type(value).__name__}, which may change")


def _is_constant(value):
    if isinstance(value, dict):
        return all(map(_is_constant, (*value.keys(), *value.values())))
    return isinstance(value, _CONSTANTS) or (isinstance(value, (tuple, list)) and all(map(_is_constant, value)))


class _NoTensors(TorchDispatchMode):
    """Refuse what computes tensors while torch.fx traces, because their values would become constants."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise NotFusedError("it computes a tensor that does not depend on its arguments")


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, kinds, asked):
        super().__init__()
        self.kinds, self.asked = kinds, asked
        self.state, self.proxies = _state(), []

    def has_living_proxies(self):
        return any(proxy() is not None for proxy in self.proxies)

    def is_leaf_module(self, module, name):
        return True

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in self.kinds)]

    def create_node(self, *args, **kwargs):
        if _state() != self.state:
            raise NotFusedError("it changes the mode of autograd or autocast")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a):
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, np.generic):
            a = a.item()
        plain = (
            type(a) in (tuple, list, dict, torch.Size)
            or hasattr(a, "_fields")
            or type(a).__module__.startswith("torch.fx")
        )
        if (isinstance(a, (tuple, list, dict)) and not plain) or dataclasses.is_dataclass(a):
            raise NotFusedError(f"it makes an object of type {type(a).__name__}")
        return super().create_arg(a)

    def proxy(self, node):
        proxy = _Proxy(node, self)
        self.proxies.append(weakref.ref(proxy))
        return proxy


_DEVICES = ("cpu", "cuda")


def _state():
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # those of checkpoints, for one
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), hooks, *map(torch.is_autocast_enabled, _DEVICES)


class _Proxy(fx.Proxy):
    """A proxy that looks like the argument it stands for when forward asks for its type."""

    _is_param = False  # isinstance asks tensors whether they are parameters

    @property  # type: ignore[misc]
    def __class__(self):
        if sys._getframe(1).f_globals.get("__name__", "").startswith(("torch.fx", "torch.utils._pytree", __name__)):
            return _Proxy
        return self._kind()[0]

    def _kind(self):
        if self.node.op != "placeholder":
            raise NotFusedError("it asks for the type of an intermediate result")
        self.tracer.asked.add(self.node.target)
        return self.tracer.kinds[self.node.target]

    def __getattr__(self, name):
        if not hasattr(torch.Tensor, name) and not hasattr(self._kind()[0], name):
            raise AttributeError(name)
        return super().__getattr__(name)

    def __setattr__(self, name, value):
        if name not in ("tracer", "node"):
            raise NotFusedError("it sets an attribute of a tensor")
        super().__setattr__(name, value)

    def __str__(self):
        raise NotFusedError("it shows a tensor as text")

    def __format__(self, spec):
        return str(self)


def _in_place(function):
    def record(self, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


# torch.fx records x += y as x + y, which loses a change of x and the dtype of the result.
for _name in _IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


# ---- the graph


def _fuse(graph, module):
    """Fuse what follows the batch norms of a graph; return what was fused and why the rest was not, by batch norm."""
    names = {child: name for name, child in module.named_modules()}
    fused, left, alone, residuals = {}, {}, {}, {}
    for node in list(graph.nodes):
        norm = norm_at_end(module.get_submodule(node.target)) if node.op == "call_module" else None
        if norm is None:
            continue
        try:
            addition, activation = _followers(node, module)
            _check_order(graph, node, addition, activation, module)
        except NotFusedError as reason:
            left[names[norm]], alone[node] = str(reason), names[norm]
            continue
        parts = [] if addition is None else ["residual"]
        parts += [] if activation is None else [_label(activation, module)]
        fused[names[norm]] = " + ".join(parts)
        call = _replace(graph, node, addition, activation, module)
        residuals[call.args[3]] = names[norm]
    # Of two batch norms that are added, only one can be fused with the addition.
    left.update(
        {name: f"the addition is fused with {residuals[node]}" for node, name in alone.items() if node in residuals}
    )
    return fused, left


def norm_at_end(module):
    """Return the batch norm that a module is or, as a sequence, ends with; it need not be possible to fuse it."""
    if type(module) in FUSED.values():
        return module
    return norm_at_end(module[-1]) if is_sequential(module) and len(module) else None


def _followers(node, module):
    """Return the addition and the activation, one of which may be None, that take a batch norm's output and no other.

    Raises:
        NotFusedError: There is neither, or they cannot be fused.
    """
    norm = module.get_submodule(node.target)
    if last_norm(norm) is None:
        if norm_at_end(norm).has_activation():
            raise NotFusedError("it has an activation of its own")
        raise NotFusedError("it has hooks or a forward of its own")
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise NotFusedError("it is called with other arguments than its input")
    addition, activation = None, _only_user(node)
    if activation.target in _ADDITIONS:
        addition = activation
        _residual_of(addition, node)
        following = _only_user(addition) if len(addition.users) == 1 else None
        known = following is not None and _activation_of(following, addition, module) is not None
        return addition, following if known else None
    if _activation_of(activation, node, module) is None:
        raise NotFusedError(_why_no_activation(activation, module))
    return None, activation


def _only_user(node):
    if len(node.users) != 1:
        raise NotFusedError(f"its output is used {len(node.users)} times")
    (user,) = node.users
    return user


def _remove_identities(graph, module):
    """Remove the calls of modules that return their input, as options do that are turned off; return their names."""
    names = []
    for node in list(graph.nodes):
        child = module.get_submodule(node.target) if node.op == "call_module" else None
        if type(child) is nn.Identity and not is_altered(child) and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            names.append(node.target)
    return names


def _residual_of(addition, node):
    """Return what is added to a batch norm's output."""
    if len(addition.args) != 2 or addition.kwargs:
        raise NotFusedError("the addition has other arguments than two tensors")
    first, second = addition.args
    other = second if first is node else first
    if other is node or not isinstance(other, fx.Node):
        raise NotFusedError("what is added to it is not another tensor")
    if _order_of(addition, node) == "in place" and first is not node:
        raise NotFusedError("it is added in place to another tensor")
    return other


def _order_of(addition, node):
    """Return where the residual stands in an addition."""
    if addition.target in (operator.iadd, "add_"):
        return "in place"
    return "second" if addition.args[0] is node else "first"


def _activation_of(node, source, module):
    """Return the activation that a node applies to `source`: a module's `Activation`, a function's, or None."""
    if not node.args or node.args[0] is not source:
        return None
    if node.op == "call_module":
        child = module.get_submodule(node.target)
        return None if is_altered(child) or len(node.args) > 1 or node.kwargs else activation_of(child)
    name = _FUNCTIONS.get(node.target) if node.op in ("call_function", "call_method") else None
    if node.target is F.gelu:
        return Activation(name) if node.kwargs.get("approximate") == "tanh" else None
    if node.target in (F.leaky_relu, F.leaky_relu_):
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        return Activation(name, slope) if isinstance(slope, int | float) and abs(slope) < math.inf else None
    return None if name is None else Activation(name)


def _why_no_activation(node, module):
    if node.op == "output":
        return "forward returns its output"
    if node.op == "call_module":
        child = module.get_submodule(node.target)
        altered = activation_of(child) is not None
        return f"{node.target} has hooks or a forward of its own" if altered else f"{type(child).__name__} follows"
    return f"{_name_of(node)} follows"


def _name_of(node):
    """Return the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else node.target.__name__


def _check_order(graph, node, addition, activation, module):
    """Refuse unless the batch norm may be computed as late as what follows it, and the residual as early."""
    order = list(graph.nodes)
    begin, end = order.index(node), order.index(activation or addition)
    is_sequence = is_sequential(module.get_submodule(node.target))
    for between in order[begin + 1 : end]:
        if between is addition:
            continue
        if _shares(between, node, module):
            raise NotFusedError("it is called again before its output is used")
        # A sequence may draw random numbers, and a change in place may reach the input through a view.
        used = is_sequence or node.args[0] in between.all_input_nodes or _may_change(between, module)
        if used and not _is_pure(between, module):
            raise NotFusedError("its input may change before its output is used")
    if addition is not None:
        residual = _residual_of(addition, node)
        for later in order[order.index(addition) + 1 :]:
            if residual in later.all_input_nodes and _may_change(later, module):
                raise NotFusedError("what is added to it is changed in place afterwards")


def _shares(node, norm, module):
    """Return whether a call computes a module that a call of a batch norm computes too."""
    if node.op != "call_module":
        return False
    first, second = (set(module.get_submodule(call.target).modules()) for call in (node, norm))
    return bool(first & second)


def _is_pure(node, module):
    """Return whether a call changes no tensor and draws no random numbers."""
    if node.op == "call_module":
        return all(
            type(child) in _PURE or is_sequential(child) for child in module.get_submodule(node.target).modules()
        )
    return node.op == "get_attr"


def _may_change(node, module):
    """Return whether a call may change its arguments in place."""
    if node.op == "call_module":
        return _changes_input(module.get_submodule(node.target))
    name = _name_of(node)
    return name.endswith("_") or bool(node.kwargs.get("inplace")) or name in _IN_PLACE


def _changes_input(module):
    if is_sequential(module):  # later modules change what the first one returns
        return len(module) > 0 and _changes_input(module[0])
    return getattr(module, "inplace", False) or not type(module).__module__.startswith(("torch.nn", "tgan_fast"))


def _label(node, module):
    if node.op == "call_module":
        return type(module.get_submodule(node.target)).__name__
    return _name_of(node).strip("_")


def _replace(graph, node, addition, activation, module):
    """Put one call of `call_fused` in place of a batch norm and what follows it."""
    last = activation or addition
    residual = None if addition is None else _residual_of(addition, node)
    with graph.inserting_before(last):
        norm = graph.get_attr(node.target)
        if activation is None:
            function = IDENTITY
        elif activation.op == "call_module":
            function = graph.get_attr(activation.target)
        else:
            function = _activation_of(activation, addition or node, module)
        order = None if addition is None else _order_of(addition, node)
        call = graph.call_function(call_fused, (norm, function, node.args[0], residual, order))
    last.replace_all_uses_with(call)
    for old in (activation, addition, node):
        if old is not None:
            graph.erase_node(old)
    return call
