"""All families that are read and written, in the order in which `choose` tries them, and the families that are refused.

To add a family, write its file after the model of the most similar one and add it to `FAMILIES`. Then add its published
configs to `published_configs.json` and its tiny model to `tiny_families.py`, both in `tests/checkpoint/convert`. The
tests run for every family, and say which row docs/conversion.md needs.
"""

from collections.abc import Mapping
from typing import Any

from megagpt.checkpoint.convert.families.base import BIASES, Family, effective
from megagpt.checkpoint.convert.families.falcon import FALCON
from megagpt.checkpoint.convert.families.gemma import GEMMA2, GEMMA3
from megagpt.checkpoint.convert.families.gpt2 import BIGCODE, GPT2, GPT_NEO
from megagpt.checkpoint.convert.families.gpt_neox import GPT_NEOX
from megagpt.checkpoint.convert.families.gptj import GPTJ
from megagpt.checkpoint.convert.families.llama import LLAMA, MISTRAL
from megagpt.checkpoint.convert.families.olmo2 import OLMO2
from megagpt.checkpoint.convert.families.opt import OPT
from megagpt.checkpoint.convert.families.phi3 import PHI3
from megagpt.checkpoint.convert.families.qwen import QWEN2, QWEN3
from megagpt.checkpoint.convert.families.starcoder2 import STARCODER2
from megagpt.config.schema import ModelConfig
from megagpt.errors import CheckpointError

FAMILIES = (
    GPT2,
    GPT_NEO,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    STARCODER2,
    GPT_NEOX,
    GPTJ,
    OPT,
    BIGCODE,
    OLMO2,
    FALCON,
)
BY_TYPE = {family.model_type: family for family in FAMILIES}
BY_CLASS = {family.architecture: family for family in FAMILIES}

EXPERTS = "a mixture of experts, which megagpt's models are not"
ALIBI = "it uses ALiBi for positions; megagpt has learned and rotary ones"
REFUSED = {
    "mixtral": (EXPERTS, "Mistral 7B (mistral)"),
    "qwen2_moe": (EXPERTS, "Qwen2.5 (qwen2)"),
    "qwen3_moe": (EXPERTS, "Qwen3-32B (qwen3)"),
    "qwen3_next": (EXPERTS, "Qwen3 (qwen3)"),
    "deepseek_v2": (EXPERTS, "DeepSeek-LLM 7B (llama), or R1's distillations (qwen2 and llama)"),
    "deepseek_v3": (EXPERTS, "DeepSeek-R1's distillations (qwen2 and llama)"),
    "gpt_oss": (EXPERTS, "Qwen3 (qwen3)"),
    "phimoe": (EXPERTS, "Phi-4 (phi3)"),
    "olmoe": (EXPERTS, "OLMo 2 (olmo2)"),
    "granitemoe": (EXPERTS, "Llama 3 (llama)"),
    "dbrx": (EXPERTS, "Llama 3 (llama)"),
    "llama4": (EXPERTS, "Llama 3.3 (llama)"),
    "bloom": (ALIBI, "Pythia (gpt_neox)"),
    "mpt": (ALIBI, "Pythia (gpt_neox)"),
    "gemma3": ("it sees images", "its language model alone, saved as Gemma3ForCausalLM (gemma3_text)"),
    "gemma3n": ("it has embeddings in every layer", "Gemma 3 (gemma3_text)"),
    "mllama": ("it sees images", "Llama 3.1 (llama)"),
    "phi3small": ("it has block-sparse attention", "Phi-3-mini with 4k (phi3)"),
    "smollm3": ("some of its layers have no positions", "SmolLM2 (llama)"),
    "olmo": ("its norms have no weights", "OLMo 2 (olmo2)"),
    "olmo3": ("only some of its layers have scaled positions", "OLMo 2 (olmo2)"),
    "mamba": ("it is a state-space model", "Pythia (gpt_neox)"),
}
"""{model_type: (the feature that megagpt lacks, the most similar models that it reads)}."""


def family_of(values: Mapping[str, Any], model_type: str) -> Family:
    """The family of a config.json. Raises CheckpointError with the missing feature and the most similar models."""
    if model_type in BY_TYPE:
        return BY_TYPE[model_type]
    what, nearest = REFUSED.get(model_type, ("", ""))
    experts = any(key.endswith(("num_experts", "num_local_experts", "n_routed_experts")) for key in values)
    if not what and (experts or model_type.endswith("_moe")):
        what, nearest = EXPERTS, "a dense model of one of the families that are read"
    if not what:
        raise CheckpointError(f"known are {', '.join(BY_TYPE)}")
    raise CheckpointError(f"{what}; the nearest that is read is {nearest}")


def choose(model: ModelConfig, before: str | None = None) -> tuple[Family, ModelConfig]:
    """The family for a model, and the model as the family represents it; additional biases are zero.

    It is the model_type that the model came from (`before`) if that can represent it, else the first family with the
    same biases, else the first with more biases. Raises CheckpointError with the features that the most similar
    families lack.
    """
    found: list[tuple[bool, Family, ModelConfig]] = []
    lacking: list[tuple[int, str]] = []
    for family in FAMILIES:
        try:
            held = family.held(model)
        except CheckpointError as error:
            lacking.append((str(error).count("model."), f"{family.architecture} lacks {error}"))
            continue
        mine, theirs = effective(model), effective(held)
        same = all(mine[name] == theirs[name] for name in BIASES)
        if family.model_type == before or (same and before is None):
            return family, held
        found.append((not same, family, held))
    if found:
        return min(found, key=lambda one: one[0])[1:]
    nearest = [text for _, text in sorted(lacking, key=lambda one: one[0])[:3]]
    raise CheckpointError(f"no architecture of transformers that megagpt writes has this model: {'; '.join(nearest)}")
