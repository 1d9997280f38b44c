"""The shadow GPU refuses what CUDA refuses, and records what CUDA waits for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovss_bench as ob
from device.methods import build, images, predictions, vocabulary
from device.shadow import CUDA, POISON, REAL
from ovss_bench.inference import finish
from ovss_bench.ops.device import kept, to_device
from ovss_bench.ops.vote import row_numbers, tally

pytestmark = pytest.mark.skipif(REAL, reason="about the shadow GPU")


@pytest.fixture
def x(gpu):
    return torch.arange(12.0).view(3, 4).to(CUDA)


def test_a_tensor_says_where_it_is(x):
    assert (x.device, x.is_cuda, x.dtype, tuple(x.shape)) == (CUDA, True, torch.float32, (3, 4))
    others = x + 1, x[0], x.T, x.max(0).values, x.new_zeros(3), torch.zeros(2, device="cuda"), x.half()
    assert {other.device for other in others} == {CUDA}
    assert x.cpu().device.type == "cpu"
    assert torch.equal(x.cpu(), torch.arange(12.0).view(3, 4))


def test_views_and_changes_in_place_reach_the_values(x):
    x[1:, 2] = -1
    x.view(-1)[0].add_(5)
    assert torch.mm(x, x.T, out=(out := x.new_empty(3, 3))) is out
    assert x.tolist() == [[5, 1, 2, 3], [4, 5, -1, 7], [8, 9, -1, 11]]
    assert out.cpu()[0, 0] == 25 + 1 + 4 + 9


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3, 4),
        lambda x: torch.ones(3, 4) * x,
        lambda x: torch.stack([x, torch.ones(3, 4)]),
        lambda x: F.linear(x, torch.ones(2, 4)),
        lambda x: torch.where(torch.ones(3, 4).bool(), x, 0),
        lambda x: torch.ones(3)[x[0].long() % 3],
        lambda x: torch.mm(x, x.T, out=torch.empty(3, 3)),
        lambda x: x.masked_fill(torch.ones(3, 4).bool(), 0),
        lambda x: x * np.ones((3, 4)),
    ],
)
def test_a_tensor_on_the_cpu_is_refused(x, wrong):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        wrong(x)


def test_a_scalar_on_the_cpu_is_not_refused(x):
    assert (x + torch.tensor(1.0)).device == CUDA


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.half() @ x.T, "dtype"),
        (lambda x: x.bfloat16() @ x.half().T, "dtype"),
        (lambda x: x.long() @ x.long().T, "not implemented"),
        (lambda x: torch.cdist(x.half(), x.half()), "not implemented"),
        (lambda x: x.half().quantile(0.5), "quantile|not implemented"),
        (lambda x: F.interpolate(x.byte()[None, None], (6, 6), mode="bilinear"), "not implemented"),
    ],
)
def test_a_dtype_that_cuda_does_not_take_is_refused(x, wrong, message):
    with pytest.raises(RuntimeError, match=message):
        wrong(x)


def test_numpy_refuses_a_tensor_on_the_gpu(x):
    for wrong in (lambda: x.numpy(), lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="numpy"):
            wrong()


WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "list": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "to, not to wait, but from ordinary memory": lambda x: torch.ones(3).to(CUDA, non_blocking=True),
    "pinned memory, but to wait": lambda x: torch.ones(3).pin_memory().to(CUDA),
    "numpy": lambda x: x.numpy(force=True),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 3),
    "unique": lambda x: x.unique(),
    "mask": lambda x: x[x > 3],
    "mask in place": lambda x: x.__setitem__(x > 3, x[x > 3]),
    "masked_select": lambda x: x.masked_select(x > 3),
    "bincount": lambda x: x.long().flatten().bincount(),
    "one_hot": lambda x: F.one_hot(x.long()),
    "repeat": lambda x: x[0].repeat_interleave(x[0].long()),
    "equal": lambda x: torch.equal(x, x),
    "tensor": lambda x: torch.tensor([1, 2], device=CUDA),
    "new_tensor": lambda x: x.new_tensor([1, 2]),
    "list as an index": lambda x: x[[0, 1]],
    "index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "copy_": lambda x: torch.empty(3, 4).copy_(x, non_blocking=True),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
NO_WAITS = {
    "arithmetic": lambda x: (x @ x.T).softmax(-1).argmax(-1),
    "scalar by a mask": lambda x: x.__setitem__(x > 3, 0),
    "masked_fill": lambda x: x.masked_fill(x > 3, 0),
    "slices": lambda x: x[1:, None, ..., 0],
    "index on the GPU": lambda x: x[x[0].long() % 3],
    "arange": lambda x: torch.arange(3, device=x.device),
    "one_hot of known width": lambda x: F.one_hot(x.long(), 12),
    "shape": lambda x: [len(x), x.numel(), x.stride(), x.is_contiguous()],
    "pinned": lambda x: torch.ones(3).pin_memory().to(CUDA, non_blocking=True),
    "to_device": lambda x: to_device(torch.ones(3), CUDA),
    "tally": lambda x: tally(x.long(), 12),
    "row_numbers": lambda x: row_numbers(x.long()),
    "repeat twice": lambda x: x.repeat_interleave(2, 0),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", [*WAITS, *NO_WAITS])
def test_waits_are_recorded(name, inference, gpu):
    with torch.inference_mode(inference):
        x = torch.arange(12.0).view(3, 4).to(CUDA)
        gpu.waits.clear()
        (WAITS | NO_WAITS)[name](x)
    assert bool(gpu.waits) == (name in WAITS)
    assert all(wait.line.startswith("test_shadow.py") or name == "to_device" for wait in gpu.waits)


def test_a_copy_to_the_cpu_arrives_when_an_event_is_waited_for(x):
    host = finish._to_host(x)
    event = torch.cuda.current_stream(CUDA).record_event()
    later = finish._to_host(x + 1)
    x.zero_()
    assert (host == POISON).all()
    event.synchronize()
    assert torch.equal(host, torch.arange(12.0).view(3, 4))
    assert (later == POISON).all()
    torch.cuda.synchronize()
    assert torch.equal(later, torch.arange(12.0).view(3, 4) + 1)


def test_a_delivery_that_does_not_wait_is_found(clips, gpu, monkeypatch):
    segmentor, pictures = build("sclip", clips["fp32"][1]), images((80, 110))
    assert predictions(segmentor, pictures)["image0"].label_map.max() < 4
    monkeypatch.setattr("device.shadow._Recorded.synchronize", lambda event: None)
    assert (predictions(segmentor, pictures)["image0"].label_map == POISON).all()


def left_on_the_cpu(self, q, k, v, grid):
    return v * torch.ones(v.shape)


def in_another_precision(self, q, k, v, grid):
    return (q @ k.float().transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize(("mix", "message"), [(left_on_the_cpu, "same device"), (in_another_precision, "expected scalar type")])
def test_a_wrong_method_is_refused(mix, message, clips, gpu):
    members = {"__module__": __name__, "mix": mix}
    ob.SEGMENTORS.register_module(name="wrong")(type("Wrong", (ob.LastBlockSegmentor,), members))
    segmentor = ob.build_segmentor("wrong", clip=clips["fp16"][1], vocabulary=vocabulary(), short_side=80, window=64, stride=32)
    with pytest.raises(ob.OvssError, match=message):
        predictions(segmentor, images((80, 110)))


def test_constants_are_kept_by_device(gpu):
    made = []

    @kept(2)
    def twice(number):
        made.append(number)
        return torch.full((2,), float(number)), slice(3)

    there = torch.ones(1, device=CUDA)
    on_cpu, on_gpu = twice(4), twice(4, like=there)
    assert on_gpu[0].device == CUDA
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    assert twice(4, like=there) is on_gpu
    assert twice(4) is on_cpu
    assert made == [4, 4]
    assert len(gpu.uploads) == 1


def test_tallies_and_numbers_are_those_of_pytorch():
    values = torch.randint(0, 9, (5, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(tally(values, 11), torch.stack([row.bincount(minlength=11) for row in values]))
    assert torch.equal(row_numbers(7 * values - 3), torch.stack([row.unique(return_inverse=True)[1] for row in values]))
