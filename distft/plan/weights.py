"""Weights of the layers that models are made of: linear layers, norms, embeddings, experts."""

from __future__ import annotations

from dataclasses import replace

from distft.plan.architecture import Layout, Weight

Weights = tuple[Weight, ...]


def linear(name: str, outputs: int, inputs: int, bias: bool = True, layout: Layout = "linear") -> Weights:
    """A linear layer; with the layout "transposed" as GPT-2 has it, [inputs, outputs]."""
    shape = (inputs, outputs) if layout == "transposed" else (outputs, inputs)
    return (Weight(f"{name}.weight", shape, layout=layout), *(vector(f"{name}.bias", outputs) if bias else ()))


def norm(name: str, size: int, bias: bool = False) -> Weights:
    return (*vector(f"{name}.weight", size), *(vector(f"{name}.bias", size) if bias else ()))


def vector(name: str, *shape: int) -> Weights:
    """A parameter that is no matrix, by its whole name."""
    return (Weight(name, shape, "vector"),)


def embedding(name: str, rows: int, width: int, frozen: bool = False) -> Weights:
    return (Weight(f"{name}.weight", (rows, width), "embedding", frozen=frozen),)


def bare(name: str, *shape: int, experts: bool = False) -> Weights:
    """A matrix that is not the weight of a linear layer, by its whole name."""
    return (Weight(name, shape, experts=experts, layout="bare"),)


def convolution(name: str, *shape: int, bias: bool = True, stride: int = 1) -> Weights:
    matrix = Weight(f"{name}.weight", shape, "convolution", stride=stride)
    return (matrix, *(vector(f"{name}.bias", shape[0]) if bias else ()))


def joined(prefix: str, weights: Weights) -> Weights:
    """The weights of a part by their names within the whole."""
    return tuple(replace(weight, name=f"{prefix}.{weight.name}" if prefix else weight.name) for weight in weights)
