"""Models that answer in microseconds: a real vocabulary, and random weights of one layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH = 32
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
"""For vocabularies that come without a chat template."""


def write_gguf(vocabulary: Path, model: Path, *, context: int = 4096, changes: Mapping[str, Any] | None = None) -> None:
    """A llama model that llama-server loads, with the tokenizer of ``vocabulary``, a .gguf file.

    ``changes`` replaces or adds strings and booleans among the keys.
    """
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader, writer = GGUFReader(vocabulary), GGUFWriter(str(model), "llama")
    changed: dict[str, Any] = (
        {} if "tokenizer.chat_template" in reader.fields else {"tokenizer.chat_template": TEMPLATE}
    )
    changed.update(changes or {})
    for key, field in reader.fields.items():
        if (key.startswith("tokenizer.") or key == "general.name") and key not in changed:
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    for key, value in changed.items():
        writer.add_key_value(key, value, GGUFValueType.BOOL if isinstance(value, bool) else GGUFValueType.STRING)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) / 10).astype(np.float32))

    tensor("token_embd", len(reader.fields["tokenizer.ggml.tokens"].data), WIDTH)
    tensor("output_norm", WIDTH)
    for name in ("attn_norm", "ffn_norm"):
        tensor(f"blk.0.{name}", WIDTH)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensor(f"blk.0.{name}", WIDTH, WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(folder: Path, *, vocabulary: int, context: int = 4096) -> None:
    """A llama model as Hugging Face folders have it, beside the tokenizer that ``folder`` holds already."""
    import numpy as np
    from safetensors.numpy import save_file

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 2 * WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random, tensors = np.random.default_rng(0), {}
    square, line = (2 * WIDTH, 2 * WIDTH), (2 * WIDTH,)
    for name, shape in {
        "embed_tokens": (vocabulary, 2 * WIDTH),
        "norm": line,
        **{f"layers.0.{norm}_layernorm": line for norm in ("input", "post_attention")},
        **{f"layers.0.self_attn.{letter}_proj": square for letter in "qkvo"},
        **{f"layers.0.mlp.{part}_proj": square for part in ("gate", "up", "down")},
    }.items():
        tensors[f"model.{name}.weight"] = (random.standard_normal(shape) / 10).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
