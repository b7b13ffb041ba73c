"""A tiny model for llama.cpp's server: `prepare_llama.py FILE`, run by a Python that has `gguf`.

Random weights, as many as make it answer some thousand tokens a second on two cores, with a
tokenizer of bytes.
"""

import sys

import numpy as np
from gguf import GGUFWriter, TokenType

_WIDTH, _HEADS, _KV_HEADS, _INNER, _LAYERS = 512, 8, 4, 1408, 5
_LONGEST = 2048  # tokens of input and output
_MARKS = ("<|none|>", "<|begin|>", "<|message|>", "<|end|>")
_TEMPLATE = (
    "{% for m in messages %}<|message|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|message|>assistant: {% endif %}"
)


def _letters() -> list[str]:
    """The printable characters that stand for the 256 bytes in vocabularies of byte pairs."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _add_tokenizer(writer: GGUFWriter) -> int:
    letters = _letters()
    pairs = [f"{letters[ord(' ')]}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokens = [*_MARKS, *letters, *pairs]
    kinds = [TokenType.CONTROL] * len(_MARKS) + [TokenType.NORMAL] * (len(tokens) - len(_MARKS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{pair[0]} {pair[1]}" for pair in pairs])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(3)
    writer.add_chat_template(_TEMPLATE)
    return len(tokens)


def _write_model(path: str) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(_LONGEST)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    words = _add_tokenizer(writer)
    writer.add_vocab_size(words)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = random.normal(0, 0.02, shape) if len(shape) > 1 else np.ones(shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", words, _WIDTH)
    for layer in range(_LAYERS):
        kv_width = _WIDTH // _HEADS * _KV_HEADS
        add(f"blk.{layer}.attn_norm", _WIDTH)
        add(f"blk.{layer}.attn_q", _WIDTH, _WIDTH)
        add(f"blk.{layer}.attn_k", kv_width, _WIDTH)
        add(f"blk.{layer}.attn_v", kv_width, _WIDTH)
        add(f"blk.{layer}.attn_output", _WIDTH, _WIDTH)
        add(f"blk.{layer}.ffn_norm", _WIDTH)
        add(f"blk.{layer}.ffn_gate", _INNER, _WIDTH)
        add(f"blk.{layer}.ffn_up", _INNER, _WIDTH)
        add(f"blk.{layer}.ffn_down", _WIDTH, _INNER)
    add("output_norm", _WIDTH)
    add("output", words, _WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    _write_model(sys.argv[1])
