"""A process of its own that asks transformers for the weights of a model, without making them.

It reads {"folder" or "config", "auto_class", "labels", "trusted"} on its standard input, and prints what
`distft.plan.unknown` reads. It is the one module of the plan that loads torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def weights_of(asked: dict[str, Any]) -> dict[str, Any]:
    """The weights of a model on the device "meta", and what its configuration says of its sizes."""
    import torch
    import transformers
    from transformers import AutoConfig
    from transformers.pytorch_utils import Conv1D

    transformers.logging.set_verbosity_error()
    names = {"id2label": dict(enumerate(map(str, range(asked["labels"]))))} if asked["labels"] else {}
    if asked["folder"] is not None:
        config = AutoConfig.from_pretrained(asked["folder"], trust_remote_code=asked["trusted"], **names)
    else:
        sizes = {key: value for key, value in asked["config"].items() if key != "model_type"}
        config = AutoConfig.for_model(asked["config"]["model_type"], **sizes, **names)
    with torch.device("meta"):
        model = getattr(transformers, asked["auto_class"]).from_config(config, trust_remote_code=asked["trusted"])
    kinds: dict[int, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = "bare" if parameter.dim() > 1 else "vector"
            kind = {torch.nn.Linear: "linear", Conv1D: "transposed", torch.nn.Embedding: "embedding"}.get(type(module))
            kinds[id(parameter)] = kind if kind and name == "weight" else plain
            if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d) and name == "weight":
                kinds[id(parameter)] = "convolution"
    text = config.get_text_config()
    output = model.get_output_embeddings()
    return {
        "weights": [(name, list(p.shape), kinds[id(p)], p.requires_grad) for name, p in model.named_parameters()],
        "prefix": model.base_model_prefix,
        "both": bool(config.is_encoder_decoder),
        "output": next((name for name, module in model.named_modules() if module is output), None),
        "tied": output is not None and output.weight is model.get_input_embeddings().weight,
        "config": json.loads(text.to_json_string(use_diff=False)),
        "aliases": dict(text.attribute_map),
    }


def main() -> None:
    try:
        found = weights_of(json.load(sys.stdin))
    except (
        OSError,
        ValueError,
        ImportError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        found = {"refused": (str(error).strip() or type(error).__name__).splitlines()[0]}
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
