"""Traces made by hand: who has each instant of a step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from distft.run.profile import PARTS
from distft.training.step_parts import Free, Parts, Taken, parts_of
from distft.training.trace import read_trace

MAIN, AUTOGRAD, GLOO, FEED, STREAM, NCCL = 100, 101, 102, 103, 7, 20
EVALUATES = "autograd::engine::evaluate_function: "


def event(category: str, name: str, thread: int, begin: float, end: float, **about: Any) -> dict[str, Any]:
    """In milliseconds."""
    times = {"ts": 7e12 + 1e3 * begin, "dur": 1e3 * (end - begin)}
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": thread, **times, "args": about}


def span(name: str, begin: float, end: float, thread: int = MAIN) -> dict[str, Any]:
    return event("user_annotation", f"distft: {name}", thread, begin, end)


def operation(name: str, begin: float, end: float, thread: int = MAIN, **about: Any) -> dict[str, Any]:
    return event("cpu_op", name, thread, begin, end, **about)


def made(number: int) -> dict[str, Any]:
    return {"Sequence number": number, "Fwd thread id": 0}


def evaluated(number: int) -> dict[str, Any]:
    return {"Sequence number": number, "Fwd thread id": 1}


def write(path: Path, *events: dict[str, Any]) -> Path:
    others = [{"ph": "M", "name": "process_name", "ts": 0, "pid": 1, "tid": 0, "args": {"name": "x"}}]
    text = json.dumps({"schemaVersion": 1, "traceEvents": [*others, *events], "traceName": "x"}, indent=2)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def reckoned(path: Path, *events: dict[str, Any]) -> tuple[dict[str, float], Parts]:
    """Milliseconds of the parts that have any."""
    found = parts_of(read_trace(write(path, *events)))
    assert list(found.seconds) == list(PARTS)
    return {part: round(1e3 * seconds, 3) for part, seconds in found.seconds.items() if seconds > 1e-9}, found


def forward(begin: float) -> list[dict[str, Any]]:
    """10 ms: the model 8, of which attention 3 without its projection, and the head 2."""
    return [
        span("forward", begin, begin + 10),
        span("model", begin + 1, begin + 9),
        operation("aten::mm", begin + 1, begin + 2, **made(4)),
        span("attention", begin + 2, begin + 6),
        span("rest", begin + 2, begin + 3),
        operation("aten::linear", begin + 2, begin + 3, **made(5)),
        operation("aten::t", begin + 3, begin + 4, **made(6)),  # makes no node: the next operation does
        operation("aten::softmax", begin + 4, begin + 6, **made(6)),
        span("head", begin + 7, begin + 9),
        operation("_Losses", begin + 7, begin + 9, **made(7)),
    ]


def test_parts_of_a_step_on_a_cpu(tmp_path: Path) -> None:
    parts, found = reckoned(
        tmp_path / "trace.json.gz",
        operation("aten::add", -5, -1),  # before the step
        span("step", 0, 50),
        span("data", 1, 3),
        *forward(4),
        span("backward", 15, 30),
        operation(EVALUATES + "_LossesBackward", 15, 16, **evaluated(7)),
        operation(EVALUATES + "SoftmaxBackward", 16, 20, **evaluated(6)),
        operation("aten::_softmax_backward", 16, 19),
        operation(EVALUATES + "MmBackward", 20, 21, **evaluated(4)),
        operation(EVALUATES + "torch::autograd::AccumulateGrad", 21, 29),
        operation("c10d::allreduce_", 22, 23),
        event("user_annotation", "gloo:all_reduce", GLOO, 22.5, 27),
        operation("aten::mul", 25, 26),  # meanwhile
        span("optimizer", 31, 35),
        operation("c10d::allreduce_", 32, 32.5),
        event("user_annotation", "gloo:all_reduce", GLOO, 32.1, 33),
        span("evaluation", 36, 40),
        span("model", 37, 38),
        operation("c10d::allreduce_", 39, 40),
        span("checkpoint", 41, 44),
    )
    assert parts == {
        "data": 2.0,
        "forward": 3.0,  # the model but for attention and the head
        "attention": 3.0,
        "loss": 4.0,  # the head, and what is outside the model
        "backward": 6.0,
        "attention_backward": 4.0,
        "loss_backward": 1.0,
        "communication": 5.0,
        "optimizer": 3.0,
        "checkpoint": 3.0,
        "evaluation": 4.0,
        "other": 12.0,
    }
    assert [(one.name, round(1e3 * one.seconds, 3)) for one in found.collectives] == [
        ("c10d::allreduce_", 4.0),
        ("c10d::allreduce_", 1.0),
    ]


def test_what_is_computed_again_belongs_to_the_backward_pass(tmp_path: Path) -> None:
    parts, _ = reckoned(
        tmp_path / "trace.json",
        span("step", 0, 20),
        span("backward", 0, 20),
        operation(EVALUATES + "CheckpointFunctionBackward", 1, 19, **evaluated(3)),
        span("rest", 2, 4),
        span("attention", 5, 9),
        operation("aten::softmax", 6, 8, **made(11)),
        operation(EVALUATES + "SoftmaxBackward", 10, 14, **evaluated(11)),
    )
    assert parts == {"backward": 12.0, "attention_backward": 8.0}


def launched(name: str, begin: float, number: int, thread: int = MAIN) -> dict[str, Any]:
    return event("cuda_runtime", name, thread, begin, begin + 0.1, correlation=number)


def kernel(name: str, begin: float, end: float, number: int, stream: int = STREAM) -> dict[str, Any]:
    return event("kernel", name, stream, begin, end, correlation=number, stream=stream)


def test_parts_of_a_step_on_a_gpu(tmp_path: Path) -> None:
    """The host is ahead of the device, and another thread launches the backward pass."""
    parts, found = reckoned(
        tmp_path / "trace.json",
        span("step", 0, 50),
        span("data", 0, 2),
        *forward(2),
        launched("cudaLaunchKernel", 3.5, 1),  # in the model
        launched("cudaLaunchKernel", 6.5, 2),  # in attention
        launched("cudaLaunchKernel", 9.5, 3),  # in the head
        span("backward", 12, 16),
        operation(EVALUATES + "SoftmaxBackward", 12, 13, thread=AUTOGRAD, **evaluated(6)),
        launched("cudaLaunchKernel", 12.5, 4, AUTOGRAD),
        operation(EVALUATES + "MmBackward", 13, 14, thread=AUTOGRAD, **evaluated(4)),
        launched("cuLaunchKernelEx", 13.5, 5, AUTOGRAD),
        launched("cudaLaunchKernel", 14.5, 6, AUTOGRAD),
        span("optimizer", 16, 49),
        event("cuda_runtime", "cudaStreamSynchronize", MAIN, 20, 40, correlation=9),
        launched("cudaLaunchKernel", 46, 7),
        kernel("gemm", 4, 8, 1),
        kernel("flash_fwd", 8, 14, 2),
        kernel("softmax", 14, 16, 3),
        kernel("flash_bwd", 16, 24, 4),
        kernel("gemm", 24, 30, 5),
        kernel("ncclDevKernel_AllReduce_Sum_bf16(x)", 28, 38, 6, NCCL),
        kernel("adam", 46, 49, 7),
        launched("cudaMemcpyAsync", 15, 8, FEED),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", STREAM, 39, 40, correlation=8),
        event("gpu_user_annotation", "distft: step", STREAM, 4, 49),
    )
    assert parts == {
        "data": 3.0,  # the device has nothing to do, and the host prepares a batch; or a batch is copied
        "launching": 9.0,  # nothing to do, and the host is elsewhere: 2 to 4, 38 to 39, 40 to 46
        "forward": 4.0,
        "attention": 6.0,
        "loss": 2.0,
        "attention_backward": 8.0,
        "backward": 6.0,
        "communication": 8.0,  # of 10, two beside a kernel
        "optimizer": 3.0,
        "other": 1.0,
    }
    [taken] = found.collectives
    assert (taken.name, round(1e3 * taken.seconds), round(1e3 * taken.exposed)) == (
        "ncclDevKernel_AllReduce_Sum_bf16",
        10,
        8,
    )
    assert found.host_waits == pytest.approx(0.020)


def test_a_rank_waits_as_long_as_it_is_early() -> None:
    seconds = dict.fromkeys(PARTS, 0.0)
    early = Parts(seconds, [Taken("a", 0.5, 0.5), Taken("b", 0.3, 0.1), Taken("c", 0.1, 0.1)])
    assert early.waited([0.2, 0.1, 0.1]) == pytest.approx(0.3 + 0.1)  # not more than nothing else was done
    assert early.digest != Parts(seconds, early.collectives[:2]).digest


def test_time_is_given_once() -> None:
    free = Free([(0.0, 10.0), (20.0, 30.0)])
    assert free.take([(-5.0, 2.0, "a"), (1.0, 4.0, "b"), (2.5, 3.0, "c"), (9.0, 21.0, "a")]) == {"a": 4.0, "b": 2.0}
    assert free.left == 14.0
    assert free.take([(0.0, 100.0, "d")]) == {"d": 14.0}
    assert free.left == 0.0
    assert free.take([(0.0, 100.0, "d")]) == {}


@pytest.mark.parametrize("text", ["{}", '{"traceEvents": []}', '{"traceEvents": [{"ph": "M"}'])
def test_no_trace_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ValueError, match=r"trace\.json"):
        read_trace(tmp_path / "trace.json")
