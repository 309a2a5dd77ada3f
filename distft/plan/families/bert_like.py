"""Encoders in the manner of BERT; model types differ in names, embeddings and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distft.plan.architecture import Attention, FeedForward, Layers, Stack
from distft.plan.families.family import Config, Family, Goal, MakeHead, classifier
from distft.plan.weights import Weights, convolution, embedding, joined, linear, norm, vector

Layer = Callable[[Config], Weights]


@dataclass(frozen=True)
class Encoder:
    """A model type.

    Attributes:
        path: of its layers, behind the prefix.
        layer: the weights of one.
        around: weights outside layers, without the prefix.
        biased: scores get a bias for relative positions.
    """

    path: str
    layer: Layer
    around: Callable[[Config], Weights]
    biased: bool = False

    def stacks(self, config: Config, prefix: str) -> tuple[Stack, ...]:
        layers = Layers(
            count=config["num_hidden_layers"],
            path=f"{prefix}.{self.path}",
            weights=self.layer(config),
            attention=attention(config, biased=self.biased),
            feed_forward=FeedForward(config["intermediate_size"], False, config["hidden_act"]),
            norms=2,
            dropout=config["hidden_dropout_prob"],
        )
        return (Stack("only", config["hidden_size"], (layers,), joined(prefix, self.around(config))),)


def attention(config: Config, window: int | None = None, biased: bool = False) -> Attention:
    heads = config["num_attention_heads"]
    size, dropout = config["hidden_size"] // heads, config["attention_probs_dropout_prob"]
    return Attention(heads, heads, size, size, False, window, bias=biased, dropout=dropout)


def squares(config: Config, names: Mapping[str, bool] | tuple[str, ...], bias: bool = True) -> Weights:
    hidden = config["hidden_size"]
    return tuple(w for name in names for w in linear(name, hidden, hidden, bias))


def behind_attention(config: Config) -> Weights:
    """What BERT and its kin have behind attention, by the same names."""
    hidden, width = config["hidden_size"], config["intermediate_size"]
    return (
        norm("attention.output.LayerNorm", hidden, True)
        + linear("intermediate.dense", width, hidden)
        + linear("output.dense", hidden, width)
        + norm("output.LayerNorm", hidden, True)
    )


def bert_layer(config: Config) -> Weights:
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    return squares(config, names) + behind_attention(config)


def mpnet_layer(config: Config) -> Weights:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    return (
        squares(config, tuple(f"attention.attn.{name}" for name in "qkvo"))
        + norm("attention.LayerNorm", hidden, True)
        + linear("intermediate.dense", width, hidden)
        + linear("output.dense", hidden, width)
        + norm("output.LayerNorm", hidden, True)
    )


def distilbert_layer(config: Config) -> Weights:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    return (
        squares(config, tuple(f"attention.{name}_lin" for name in ("q", "k", "v", "out")))
        + norm("sa_layer_norm", hidden, True)
        + linear("ffn.lin1", width, hidden)
        + linear("ffn.lin2", hidden, width)
        + norm("output_layer_norm", hidden, True)
    )


def embeddings(config: Config) -> Weights:
    """Tables of tokens, positions and types, and a norm; those that the configuration has a size for."""
    width = config.get("embedding_size") or config["hidden_size"]
    found = embedding("embeddings.word_embeddings", config["vocab_size"], width)
    if config.get("position_biased_input", True):
        found += embedding("embeddings.position_embeddings", config["max_position_embeddings"], width)
    if types := config.get("type_vocab_size"):
        found += embedding("embeddings.token_type_embeddings", types, width)
    return found + norm("embeddings.LayerNorm", width, True)


def electra_embeddings(config: Config) -> Weights:
    narrow, hidden = config["embedding_size"], config["hidden_size"]
    return embeddings(config) + (linear("embeddings_project", hidden, narrow) if narrow != hidden else ())


def mpnet_embeddings(config: Config) -> Weights:
    buckets, heads = config["relative_attention_num_buckets"], config["num_attention_heads"]
    return embeddings(config) + embedding("encoder.relative_attention_bias", buckets, heads)


def deberta_layer(config: Config) -> Weights:
    names = ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"]
    kinds = deberta_kinds(config)
    if config["relative_attention"] and not config["share_att_key"]:
        names += ["attention.self.pos_key_proj"] if "c2p" in kinds else []
        names += ["attention.self.pos_query_proj"] if "p2c" in kinds else []
    return squares(config, (*names, "attention.output.dense")) + behind_attention(config)


def deberta_kinds(config: Config) -> list[str]:
    """Which parts of positions attention looks at; older configurations write "c2p|p2c"."""
    said = config["pos_att_type"] or []
    return [one.strip() for one in said.lower().split("|")] if isinstance(said, str) else list(said)


def deberta_embeddings(config: Config) -> Weights:
    hidden, found = config["hidden_size"], embeddings(config)
    narrow = config.get("embedding_size") or hidden
    found += linear("embeddings.embed_proj", hidden, narrow, False) if narrow != hidden else ()
    if config["relative_attention"]:
        reach = config["max_relative_positions"]
        reach = config["max_position_embeddings"] if reach < 1 else reach
        buckets = config["position_buckets"] if config["position_buckets"] > 0 else reach
        found += embedding("encoder.rel_embeddings", 2 * buckets, hidden)
        if "layer_norm" in config["norm_rel_ebd"]:
            found += norm("encoder.LayerNorm", hidden, True)
    if (size := config["conv_kernel_size"]) > 0:
        found += convolution("encoder.conv.conv", hidden, hidden // config["conv_groups"], size)
        found += norm("encoder.conv.LayerNorm", hidden, True)
    return found


def transform(name: str, layer_norm: str, bias: str, width: str = "hidden_size") -> MakeHead:
    """A head for masked tokens: a layer, a norm and a bias per token; its matrix is the embedding."""

    def head(config: Config, labels: int) -> Weights:
        narrow = config[width]
        return (
            vector(bias, config["vocab_size"])
            + linear(name, narrow, config["hidden_size"])
            + norm(layer_norm, narrow, True)
            + untied(bias.removesuffix(".bias"), config, narrow)
        )

    return head


def deberta_derived(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "pooler_hidden_size": config["pooler_hidden_size"] or config["hidden_size"]}


def untied(name: str, config: Config, width: int) -> Weights:
    if config["tie_word_embeddings"]:
        return ()
    return linear(f"{name}.decoder", config["vocab_size"], width, False)


def pooled(pooler: str, size: str = "hidden_size") -> MakeHead:
    """A classifier behind a pooler."""

    def head(config: Config, labels: int) -> Weights:
        width = config[size]
        return linear(pooler, width, width) + linear("classifier", labels, width)

    return head


def two_layers(first: str, second: str) -> MakeHead:
    def head(config: Config, labels: int) -> Weights:
        return linear(first, config["hidden_size"], config["hidden_size"]) + linear(
            second, labels, config["hidden_size"]
        )

    return head


CLS = transform("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
LM_HEAD = transform("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
OUT = two_layers("classifier.dense", "classifier.out_proj")


def heads(masked: MakeHead, sequence: MakeHead) -> dict[Goal, MakeHead]:
    plain: dict[Goal, MakeHead] = {"tokens": classifier("classifier"), "answers": classifier("qa_outputs")}
    return {"masked": masked, "sequence": sequence, **plain}


BERT_LAYERS = Encoder("encoder.layer", bert_layer, embeddings)
CLS_OUTPUT: dict[Goal, str] = {"masked": "cls.predictions.decoder"}
LM_OUTPUT: dict[Goal, str] = {"masked": "lm_head.decoder"}
BERT = Family(BERT_LAYERS.stacks, "bert", heads(CLS, pooled("bert.pooler.dense")), outputs=CLS_OUTPUT)
ERNIE = Family(BERT_LAYERS.stacks, "ernie", heads(CLS, pooled("ernie.pooler.dense")), outputs=CLS_OUTPUT)
ROBERTA = Family(BERT_LAYERS.stacks, "roberta", heads(LM_HEAD, OUT), outputs=LM_OUTPUT)
MPNET = Family(
    Encoder("encoder.layer", mpnet_layer, mpnet_embeddings, biased=True).stacks,
    "mpnet",
    heads(LM_HEAD, OUT),
    outputs=LM_OUTPUT,
)
DEBERTA = Family(
    Encoder("encoder.layer", deberta_layer, deberta_embeddings, biased=True).stacks,
    "deberta",
    heads(CLS, pooled("pooler.dense", "pooler_hidden_size")),
    outputs=CLS_OUTPUT,
)
DISTILBERT = Family(
    Encoder("transformer.layer", distilbert_layer, embeddings).stacks,
    "distilbert",
    heads(
        transform("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        two_layers("pre_classifier", "classifier"),
    ),
    outputs={"masked": "vocab_projector"},
)
ELECTRA = Family(
    Encoder("encoder.layer", bert_layer, electra_embeddings).stacks,
    "electra",
    heads(
        transform(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
            "embedding_size",
        ),
        OUT,
    ),
    outputs={"masked": "generator_lm_head"},
)
