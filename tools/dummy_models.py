"""Folders of a target and a drafter without weights, for `--load-format dummy`: the shape of Llama 3.2 1B.

    python tools/dummy_models.py TOKENIZER_FOLDER FOLDER

TOKENIZER_FOLDER is a model whose tokenizer files are copied (tools/smollm2_models.py makes one). What such a model
says is nonsense; what an engine does with it costs what it costs with real weights of that shape.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "mlp_bias": False,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    own = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = {name: own[name] for name in ("vocab_size", "bos_token_id", "eos_token_id") if name in own}
    for name, layers in (("dummy-1b", SHAPE["num_hidden_layers"]), ("dummy-1b-1-layer", 1)):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        config = {**SHAPE, **ids, "num_hidden_layers": layers}
        (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for file in TOKENIZER_FILES:
            if (source / file).exists():
                shutil.copy(source / file, target / file)
        print(target, layers, "layers,", ids["vocab_size"], "tokens")


if __name__ == "__main__":
    main()
