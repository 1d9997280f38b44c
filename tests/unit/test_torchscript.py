"""TorchScript archives are read as torch.jit.load reads them, and nothing in them is run."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

import ovss_bench as ob
from ovss_bench.encoders.checkpoints import read_weights
from ovss_bench.encoders.torchscript import is_torchscript, read_torchscript


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(6, 4).half())
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.out_proj = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(2, 2).triu(1), persistent=False)
        self.plain = torch.ones(2)  # neither parameter nor buffer
        self.heads = 2
        self.sizes, self.factors, self.flags, self.tensors = [1, 2], [0.5], [True], [torch.ones(1)]
        self.named = {"a": 1.5}

    def forward(self, x):
        x = self.out_proj(x) + self.in_proj_weight.float().sum() + self.turned.sum() + self.mask.sum() + self.plain.sum()
        return x * self.heads + self.sizes[0] + self.factors[0] + float(self.flags[0]) + self.tensors[0] + self.named["a"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(Attention(), nn.LayerNorm(4), Attention())
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.tied = nn.Parameter(self.visual[0].out_proj.weight.data)  # of the same storage
        self.low = nn.Parameter(torch.randn(3).bfloat16())
        self.none = nn.Parameter(torch.empty(0, 3))
        for name, value in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return self.visual(x) * self.logit_scale


@pytest.mark.parametrize("write", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(2, 4))])
def test_the_state_dict_is_that_of_torch_jit(write, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    torch.jit.save(write(Model()), path)
    expected = torch.jit.load(path).state_dict()

    def refuse(*_, **__):
        raise AssertionError("torch.jit.load was called")

    monkeypatch.setattr(torch.jit, "load", refuse)
    found = read_torchscript(path)
    assert found.keys() == expected.keys()
    assert {"visual.0.mask", "visual.2.in_proj_weight", "vocab_size"} <= found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name
    storages = {found[name].untyped_storage().data_ptr() for name in ("tied", "visual.0.out_proj.weight")}
    assert len(storages) == 1
    assert read_weights(path)[1] == {"activation": "quick_gelu"}


def test_what_torch_save_writes_is_no_torchscript(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("text")
    assert not any(is_torchscript(tmp_path / name) for name in ("a.pt", "b.pt"))


class Evil:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(path, content, protocol=2, **storages):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickle.dumps(content, protocol) if not isinstance(content, bytes) else content)
        file.writestr("a/constants.pkl", b"")
        file.writestr("a/code/__torch__.py", "import os\nos.abort()\n")
        for key, data in storages.items():
            file.writestr(f"a/data/{key}", data)


CALLS = {
    "a function": Evil(exec, "open('/tmp/ovss_evil', 'w')"),
    "a command": Evil(__import__("os").system, "false"),
    "a function of torch": Evil(torch.load, "x"),
    "the import": b"cimportlib\nimport_module\n(Vos\ntR.",
    "an attribute": b"cbuiltins\ngetattr\n.",
    "a dotted name": b"\x80\x04\x8c\x09__torch__\x8c\x14__init__.__globals__\x93.",
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_called(call, tmp_path, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("it was called"))
    archive(tmp_path / "evil.pt", CALLS[call])
    with pytest.raises(ob.OvssError, match=r"evil.pt cannot be read safely: (it refers to|its data.pkl holds no module)"):
        ob.load_clip(tmp_path / "evil.pt")


def rebuilt(*arguments):
    """The bytes of a module with one tensor, as TorchScript pickles it."""
    head = b"\x80\x02c__torch__\nModel\n)\x81}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
    numbers = b"".join(pickle.dumps(value, 2)[2:-1] for value in arguments)
    return head + storage + numbers + b"\x89ccollections\nOrderedDict\n)RtRsb."


@pytest.mark.parametrize(
    ("offset", "size", "stride", "message"),
    [
        (0, (2, 3), (3, 1), None),
        (0, (2, 4), (4, 1), "out of bounds"),
        (5, (2,), (1,), "out of bounds"),
        (-1, (2,), (1,), "."),
        (0, (2,), (-1,), "."),
        (0, (10**9, 10**9), (3, 1), "."),
    ],
)
def test_tensors_stay_inside_of_their_storage(offset, size, stride, message, tmp_path):
    data = torch.arange(6.0).numpy().tobytes()
    archive(tmp_path / "a.pt", rebuilt(offset, size, stride), **{"0": data})
    if message is None:
        assert torch.equal(read_weights(tmp_path / "a.pt")[0]["w"], torch.arange(6.0).view(2, 3))
        archive(tmp_path / "a.pt", rebuilt(offset, size, stride), **{"0": data[:-4]})
        message = "5 of 6 numbers"
    with pytest.raises(ob.OvssError, match=f"cannot be read safely: .*{message}"):
        read_weights(tmp_path / "a.pt")
