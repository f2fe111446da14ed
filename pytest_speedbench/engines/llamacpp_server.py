"""Run the llama-server embedded in the ``xllamacpp`` wheel, in a process of its own.

This file is executed by path (``python llamacpp_server.py CONFIG.json``) by whichever Python has
``xllamacpp``, so it imports nothing else outside the standard library. It prints one line,
``listening on http://HOST:PORT``, once the model is loaded, and stops on SIGTERM, on SIGINT, and
when its standard input reaches end of file. The last one is what ends the server when the process
that started it is killed without a chance to clean up.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

DRAFTERS = {
    "draft": "DRAFT_SIMPLE",
    "eagle3": "DRAFT_EAGLE3",
    "mtp": "DRAFT_MTP",
    "dflash": "DRAFT_DFLASH",
    "dspark": "DRAFT_DSPARK",
}
NGRAMS = {
    "ngram": "NGRAM_SIMPLE",
    "ngram_map_k": "NGRAM_MAP_K",
    "ngram_map_k4v": "NGRAM_MAP_K4V",
    "ngram_mod": "NGRAM_MOD",
}
"""Names of llama.cpp's kinds of speculation, by method."""


def parameters(config: dict[str, Any]) -> Any:
    """Translate the launch configuration into ``xllamacpp.CommonParams``."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.hostnames = [config["host"]]
    params.port = config["port"]
    params.n_parallel = config["max_batch_size"]
    params.n_ctx = config["max_model_len"] * config["max_batch_size"]
    params.cpuparams.n_threads = config["threads"]
    params.cpuparams_batch.n_threads = config["threads"]
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.cache_ram_mib = 0
    method = config["method"]
    if method != "none":
        _speculate(params.speculative, method, config)
    for name, value in config.get("params", {}).items():
        if not hasattr(params, name):
            raise SystemExit(f"xllamacpp.CommonParams has no field {name!r}")
        setattr(params, name, value)
    return params


def _speculate(speculative: Any, method: str, config: dict[str, Any]) -> None:
    import xllamacpp

    if method not in DRAFTERS | NGRAMS:
        raise SystemExit(f"unknown speculation method {method!r}")
    kind = f"COMMON_SPECULATIVE_TYPE_{(DRAFTERS | NGRAMS)[method]}"
    speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    drafts = config["draft_tokens"]
    if method in DRAFTERS:
        if config["draft_model"] is not None:
            speculative.draft.mparams.path = config["draft_model"]
        speculative.draft.n_max = drafts
        speculative.draft.p_min = 0.0
        cache_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{config['draft_cache_type'].upper()}", None)
        if cache_type is None:
            raise SystemExit(f"unknown draft_cache_type {config['draft_cache_type']!r}; f16, q8_0 and q4_0 are usual")
        speculative.draft.cache_type_k = speculative.draft.cache_type_v = cache_type
    elif method == "ngram_mod":
        speculative.ngram_mod.n_match = config["ngram_lookup"]
        speculative.ngram_mod.n_min, speculative.ngram_mod.n_max = 1, drafts
    else:
        own = getattr(speculative, NGRAMS[method].lower())
        own.size_n, own.size_m = config["ngram_lookup"], drafts


def main(path: str) -> None:
    """Serve until a signal arrives or standard input closes."""
    import xllamacpp

    config = json.loads(Path(path).read_text(encoding="utf-8"))
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    server = xllamacpp.Server(parameters(config))
    print(f"listening on {server.listening_address}", flush=True)

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        done.set()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    while not done.wait(0.2):
        pass
    # The C++ server joins its HTTP threads in its destructor, which waits for open streams;
    # nobody is left to read them.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
