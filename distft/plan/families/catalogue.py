"""Which family a model type belongs to, and what its configuration leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distft.plan import defaults
from distft.plan.families import (
    albert,
    bart,
    bert_defaults,
    bert_like,
    decoder_config,
    gemma4,
    gpt,
    llama_like,
    mixtures,
    modernbert,
    t5,
    wav2vec2,
)
from distft.plan.families.family import Family

Config = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A model type.

    Attributes:
        defaults: of its configuration.
        aliases: other names that its keys may have.
        derived: adds to a configuration what follows from it.
    """

    family: Family
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Config], Config] = dict

    def completed(self, config: Mapping[str, Any]) -> Config:
        """A configuration as it is written, with all that it leaves out."""
        given = {self.aliases.get(key, key): value for key, value in config.items() if key not in self.aliases}
        other = {self.aliases[key]: value for key, value in config.items() if key in self.aliases and value is not None}
        return self.derived({**self.defaults, **given, **other})


def decoders(
    families: Mapping[str, Family],
    common: Family,
    known: Mapping[str, Mapping[str, Any]],
    derived: Callable[[Config], Config],
) -> dict[str, Entry]:
    return {
        name: Entry(families.get(name, common), own, decoder_config.ALIASES, derived) for name, own in known.items()
    }


ANSWERS = dict.fromkeys(
    ("llama", "qwen2", "qwen3", "smollm3", "exaone4", "nemotron", "arcee", "seed_oss"), llama_like.LLAMA_ANSWERS
)
GPTS: dict[str, Entry] = {
    "gpt2": Entry(gpt.GPT2, gpt.DEFAULTS["gpt2"], gpt.GPT2_ALIASES),
    "gpt_neox": Entry(gpt.NEOX, gpt.DEFAULTS["gpt_neox"]),
    "bloom": Entry(gpt.BLOOM, gpt.DEFAULTS["bloom"], gpt.BLOOM_ALIASES),
    "falcon": Entry(gpt.FALCON, gpt.DEFAULTS["falcon"], gpt.FALCON_ALIASES, gpt.falcon_derived),
    "opt": Entry(gpt.OPT, gpt.DEFAULTS["opt"], gpt.OPT_ALIASES, gpt.opt_derived),
}
ENCODERS: dict[str, Entry] = {
    name: Entry(family, bert_defaults.DEFAULTS[name], bert_defaults.ALIASES.get(name, {}), derived)
    for name, family, derived in (
        ("bert", bert_like.BERT, dict),
        ("ernie", bert_like.ERNIE, dict),
        ("roberta", bert_like.ROBERTA, dict),
        ("xlm-roberta", bert_like.ROBERTA, dict),
        ("camembert", bert_like.ROBERTA, dict),
        ("mpnet", bert_like.MPNET, dict),
        ("electra", bert_like.ELECTRA, dict),
        ("distilbert", bert_like.DISTILBERT, dict),
        ("deberta-v2", bert_like.DEBERTA, bert_like.deberta_derived),
        ("albert", albert.ALBERT, dict),
        ("modernbert", modernbert.MODERNBERT, modernbert.derived),
    )
}
CATALOGUE: dict[str, Entry] = {
    **decoders({**ANSWERS, "phi": llama_like.PHI}, llama_like.LLAMA, defaults.DECODERS, decoder_config.derived),
    **decoders({"qwen3_moe": mixtures.QWEN3_MOE}, mixtures.MIXTURE, defaults.MIXTURES, mixtures.derived),
    "gemma4_text": Entry(gemma4.GEMMA4, defaults.GEMMA4, decoder_config.ALIASES, gemma4.derived),
    **GPTS,
    **ENCODERS,
    **{name: Entry(t5.T5, own, t5.ALIASES, t5.derived) for name, own in t5.DEFAULTS.items()},
    **{name: Entry(bart.BART, own, bart.ALIASES) for name, own in bart.DEFAULTS.items()},
    "marian": Entry(bart.BART, bart.DEFAULTS["marian"], bart.ALIASES, bart.marian_derived),
    "whisper": Entry(bart.WHISPER, bart.DEFAULTS["whisper"], bart.ALIASES),
    "wav2vec2": Entry(wav2vec2.WAV2VEC2, wav2vec2.DEFAULTS),
    "hubert": Entry(wav2vec2.HUBERT, wav2vec2.DEFAULTS),
}
