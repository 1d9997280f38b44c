"""A GPU that does not exist: tensors that report `cuda:0`, and compute on a twin in the CPU's memory.

Calls of PyTorch are checked by the rules of CUDA: all tensors on one device, dtypes that its kernels take, no NumPy array of a
tensor on the GPU. A copy to the CPU that does not wait arrives when an event is waited for; until then its memory holds
POISON. Whatever makes the CPU wait for the GPU is recorded in `Gpu.waits`, and every copy to the GPU in `Gpu.uploads`.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ovss_bench.files import PACKAGE
from ovss_bench.ops import device

CUDA = torch.device("cuda", 0)
REAL = os.environ.get("OVSS_TEST_DEVICE") == "cuda"  # the tests of all methods run on a real GPU instead
POISON = 77  # in memory that a copy has not reached
GIB = 2**30
COPIES = device.__file__
MASKS = (torch.bool, torch.uint8)
# Operations of ATen whose CUDA kernels wait for the GPU, because the size of their result, or the next step, depends on values.
WAITING = {
    *("nonzero", "argwhere", "masked_select", "bincount", "item", "_local_scalar_dense", "is_nonzero", "equal", "allclose"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "histc"),
}
# Operations that wait with some arguments only.
DEPENDING = {
    "where": lambda condition, *branches: not branches,
    "repeat_interleave": lambda x, repeats=None, dim=None, output_size=None: type(repeats) is not int and output_size is None,
    "index": lambda x, indices: any(index is not None and index.dtype in MASKS for index in indices),
}
# Operations whose CUDA kernels take fewer dtypes than those of the CPU.
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mv",
    "dot",
    "matmul",
    "linear",
    "conv1d",
    "conv2d",
    "scaled_dot_product_attention",
)
TAKES = {
    **dict.fromkeys(PRODUCTS, FLOATS),
    **{name: {torch.float32, torch.float64} for name in ("cdist", "_cdist_forward", "quantile", "nanquantile")},
    **{f"upsample_{kind}2d": FLOATS for kind in ("bilinear", "bicubic")},
    **{f"_upsample_{kind}2d_aa": FLOATS for kind in ("bilinear", "bicubic")},
    **{f"replication_pad{n}d": FLOATS for n in (1, 2, 3)},
}
GETTERS = {Tensor.device.__get__: CUDA, Tensor.is_cuda.__get__: True, Tensor.is_cpu.__get__: False, Tensor.get_device: 0}
MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
HOST_READS = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__)


class Event(NamedTuple):
    """What the CPU waited for, or a copy to the GPU of a tensor of this shape: the operation, and who asked for it."""

    operation: str
    function: str
    line: str
    shape: tuple[int, ...] = ()


class Shadow(Tensor):
    """A tensor on the GPU; `twin` holds its values. Views have twins that are views."""

    twin: Tensor

    @staticmethod
    def __new__(cls, twin):
        layout = {"strides": twin.stride(), "storage_offset": twin.storage_offset()}
        self = Tensor._make_wrapper_subclass(cls, twin.shape, dtype=twin.dtype, device=CUDA, **layout)
        self.twin = twin
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return Gpu.current.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Gpu.current.call(func, args, kwargs or {})


class Gpu(TorchFunctionMode):
    """While active, `cuda` is a device. `uploads` and `waits` are lists of `Event`."""

    current = None

    def __init__(self):
        super().__init__()
        self.uploads, self.waits = [], []
        self.pending = []  # copies to the CPU that have not arrived: (memory, values)
        self.pinned = {}  # tensors by the address of their memory; held, so that no other tensor gets the address

    def __enter__(self):
        assert Gpu.current is None
        Gpu.current = self
        return super().__enter__()

    def __exit__(self, *error):
        Gpu.current = None
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func, args, kwargs):
        """A call of PyTorch. Some have rules of their own; the others run on the twins."""
        if func in GETTERS and isinstance(args[0], Shadow):
            return GETTERS[func]
        name = getattr(func, "__name__", "")
        if name in RULES and (args and isinstance(args[0], Tensor)):
            return RULES[name](self, func, args, kwargs)
        inputs = tensors((args, kwargs))
        on_gpu = any(isinstance(x, Shadow) for x in inputs)
        asked = kwargs.get("device")
        made_there = on_gpu if asked is None else torch.device(asked).type == "cuda"
        if asked is not None and made_there:
            kwargs = kwargs | {"device": "cpu"}
        pinned = kwargs.pop("pin_memory", False)
        if not (on_gpu or made_there):
            result = func(*args, **kwargs)
            return self.pin(result) if pinned else result
        if func in MAKERS:
            if not isinstance(args[-1], Shadow):
                self.upload(name, tuple(np.shape(args[-1])))
        elif asked is None:
            same_device(name, (args, kwargs))
        result = self.on_twins(func, args, kwargs)
        if not made_there:
            result = tree_map(lambda x: x.twin if isinstance(x, Shadow) else x, result)
            return self.pin(result) if pinned else result
        return result

    def on_twins(self, func, args, kwargs, checked=True):
        """The result of a call on the twins, on the GPU. A tensor that was changed in place stays the same object."""
        known = {id(x.twin): x for x in tensors((args, kwargs)) if isinstance(x, Shadow)}
        args, kwargs = tree_map(twin_of, (args, kwargs))
        with torch._C.DisableTorchFunction(), Kernels(self) if checked else torch.no_grad():
            result = func(*args, **kwargs)

        def on_gpu(x):
            return x if not isinstance(x, Tensor) else known[id(x)] if id(x) in known else Shadow(x)

        return tree_map(on_gpu, result) if tensors(result) else result

    def pin(self, tensor):
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def is_pinned(self, tensor):
        return tensor.untyped_storage().data_ptr() in self.pinned

    def wait(self, operation):
        """The CPU waits until the GPU has done everything."""
        self.waits.append(Event(operation, *caller()))
        self.arrive(list(self.pending))

    @torch.inference_mode()
    def arrive(self, copies):
        """Copies that were started have arrived."""
        here = {id(copy) for copy in copies}
        for memory, values in (copy for copy in self.pending if id(copy) in here):
            memory.copy_(values)
        self.pending = [copy for copy in self.pending if id(copy) not in here]

    def upload(self, operation, shape, waits=True):
        self.uploads.append(Event(operation, *caller(), shape))
        if waits:
            self.wait(f"{operation} from pageable memory")

    def copy(self, func, args, kwargs):
        """`copy_` in either direction."""
        to, source = args[:2]
        lazy = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if isinstance(to, Shadow):
            if not isinstance(source, Shadow) and source.ndim:
                self.upload("copy_", tuple(source.shape), not (lazy and self.is_pinned(source)))
            to.twin.copy_(twin_of(source))
        elif not isinstance(source, Shadow):
            with torch._C.DisableTorchFunction():
                to.copy_(source, **kwargs)
        elif lazy and self.is_pinned(to):
            to.fill_(POISON)
            self.pending.append((to, source.twin.clone()))
        else:
            self.wait("copy_ to the CPU")
            to.copy_(source.twin)
        return to

    def to(self, func, args, kwargs):
        """`to`, `cpu` and `cuda`."""
        tensor, *rest = args
        name, flags = func.__name__, [x for x in rest if isinstance(x, bool)]
        lazy = kwargs.get("non_blocking", bool(flags) and flags[0])
        target, dtype = kwargs.get("device", name if name != "to" else None), kwargs.get("dtype")
        for x in rest:
            if isinstance(x, Tensor):
                target, dtype = x.device, x.dtype
            elif isinstance(x, torch.dtype):
                dtype = x
            elif isinstance(x, str | torch.device):
                target = x
        there = torch.device(tensor.device if target is None else target).type
        if there != "cuda" and not isinstance(tensor, Shadow):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            cast = twin_of(tensor).to(dtype or tensor.dtype)
        if there == tensor.device.type:
            return tensor if cast is twin_of(tensor) else Shadow(cast) if there == "cuda" else cast
        if there == "cpu":
            self.wait(f"{name} the CPU")
            return cast.clone() if cast is tensor.twin else cast
        self.upload(name, tuple(tensor.shape), not (lazy and self.is_pinned(tensor)))
        return Shadow(cast.clone() if cast is tensor else cast)

    def host_read(self, func, args, kwargs):
        if isinstance(args[0], Shadow):
            self.wait(func.__name__)
        return func(*tree_map(twin_of, args), **kwargs)

    def numpy(self, func, args, kwargs):
        if not isinstance(args[0], Shadow):
            return func(*args, **kwargs)
        if not kwargs.get("force"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        self.wait("numpy(force=True)")
        return args[0].twin.numpy(force=True).copy()

    def pin_memory(self, func, args, kwargs):
        if isinstance(args[0], Shadow):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return self.pin(args[0].clone())

    def index(self, func, args, kwargs):
        """`x[...]` and `x[...] = value`."""
        to, where, *value = args
        if not any(isinstance(x, Shadow) for x in tensors(args)):
            return func(*args)
        if not isinstance(to, Shadow):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        parts = where if isinstance(where, tuple) else (where,)
        scalar = bool(value) and not isinstance(value[0], Shadow) and np.size(value[0]) == 1
        for part in parts:
            if isinstance(part, list | range | np.ndarray) or (type(part) is Tensor and part.ndim):
                self.upload("index", tuple(np.shape(part)))
            if isinstance(part, Tensor) and part.ndim and part.dtype in MASKS and not scalar:
                self.wait("index by a mask")
        if value and isinstance(value[0], Tensor) and not isinstance(value[0], Shadow) and value[0].ndim:
            if any(isinstance(part, Tensor | list) for part in parts):
                same_device("index_put_", [to, value[0]])
            self.upload("setitem", tuple(value[0].shape))
        return self.on_twins(func, args, kwargs, checked=False)

    def one_hot(self, func, args, kwargs):
        """Of known width: only on the CPU are the values checked."""
        if not isinstance(args[0], Shadow):
            return func(*args, **kwargs)
        if kwargs.get("num_classes", args[1] if len(args) > 1 else -1) < 0:
            self.wait("one_hot")
        return self.on_twins(func, args, kwargs, checked=False)

    def requires_grad(self, func, args, kwargs):
        """Gradients are those of the twins."""
        with torch._C.DisableTorchFunction():
            func(twin_of(args[0]), *args[1:], **kwargs)
        return args[0]


RULES = {
    "_has_compatible_shallow_copy_type": lambda gpu, func, args, kwargs: len({type(x) is Shadow for x in args}) == 1,
    **dict.fromkeys(("copy_",), Gpu.copy),
    **dict.fromkeys(("to", "cpu", "cuda"), Gpu.to),
    **dict.fromkeys([read.__name__ for read in HOST_READS], Gpu.host_read),
    **dict.fromkeys(("numpy", "__array__"), Gpu.numpy),
    "pin_memory": Gpu.pin_memory,
    **dict.fromkeys(("__getitem__", "__setitem__"), Gpu.index),
    "one_hot": Gpu.one_hot,
    "requires_grad_": Gpu.requires_grad,
}


class Kernels(TorchDispatchMode):
    """Watches the operations of ATen that run on the twins."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        first = next((x for x in args if isinstance(x, Tensor)), None)
        if first is not None and first.dtype not in TAKES.get(name, {first.dtype}):
            raise RuntimeError(f'"{name}_cuda" not implemented for {first.dtype}')
        if name in WAITING or (name in DEPENDING and DEPENDING[name](*args, **(kwargs or {}))):
            self.gpu.wait(name)
        return func(*args, **(kwargs or {}))


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def twin_of(x):
    return x.twin if isinstance(x, Shadow) else x


def same_device(name, tree):
    """Scalars on the CPU may meet a tensor on the GPU; other tensors and arrays may not."""
    for x in tree_leaves(tree):
        if not isinstance(x, Shadow) and isinstance(x, Tensor | np.ndarray) and x.ndim:
            raise RuntimeError(f"Expected all tensors to be on the same device, found cuda:0 and cpu ({name} in {caller()})")


def caller():
    """The function that is running, of the package or of a test, and its line: (name, file:line)."""
    frame = sys._getframe(1)
    while skipped(frame.f_code):
        frame = frame.f_back
    file = Path(frame.f_code.co_filename)
    file = file.relative_to(PACKAGE) if file.is_relative_to(PACKAGE) else file.name
    return frame.f_code.co_qualname, f"{file}:{frame.f_lineno}"


def skipped(code):
    """PyTorch, this file, and the functions that copy for others."""
    return code.co_filename in (__file__, COPIES) or "/torch/" in code.co_filename or code.co_name in ("tensor", "<genexpr>")


class _Recorded:
    """An event of a stream: when it is waited for, copies that were started before have arrived."""

    def __init__(self, gpu):
        self.gpu, self.pending = gpu, list(gpu.pending)

    def synchronize(self):
        self.gpu.arrive(self.pending)


class _Stream:
    def __init__(self, gpu):
        self.gpu = gpu

    def record_event(self):
        return _Recorded(self.gpu)


def _no_driver():
    raise AssertionError("this call reaches the CUDA driver: tests/device/shadow.py does not know it")


@contextmanager
def shadow_gpu(monkeypatch):
    """A `Gpu` in place of `torch.cuda`. Reader threads pin memory, too, so that is replaced for all threads. None if REAL."""
    if REAL:
        yield None
        return
    gpu = Gpu()
    functions = {
        "_lazy_init": _no_driver,
        "is_available": lambda: True,
        "current_stream": lambda device=None: _Stream(gpu),
        "synchronize": lambda device=None: gpu.wait("torch.cuda.synchronize"),
        "mem_get_info": lambda device=None: (8 * GIB, 8 * GIB),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: GIB,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "shadow",
    }
    with monkeypatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(torch.cuda, name, function)
        of_twins, cpu = torch.autocast, {"cuda": "cpu"}
        patch.setattr(torch, "autocast", lambda device, *options, **named: of_twins(cpu.get(device, device), *options, **named))
        patch.setattr(Tensor, "pin_memory", lambda tensor: gpu.pin_memory(None, (tensor,), {}))
        with gpu:
            yield gpu
