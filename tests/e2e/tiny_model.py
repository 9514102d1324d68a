"""Makes the tiny random-weight Qwen3 that the end-to-end tests serve; runs inside `.venv-vllm`.

Nothing is downloaded: the weights are seeded noise and the tokenizer is trained on sentences made here. Every token but
the three markers of the chat template stands for at least one byte of UTF-8, so bytes bound tokens from above.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
from pathlib import Path

SEED = 20260101
VOCABULARY_SIZE = 1024
CONTEXT_TOKENS = 8192
SENTENCES = 4000
# Deep and narrow: a step of the engine takes some milliseconds, as a real one does. Where it takes one, the server's
# HTTP side falls seconds behind its engine on cores that others use too.
LAYERS = 12
HIDDEN = 64  # a multiple of the 32 dimensions of a head
STAMP = "made-by.sha256"
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYLLABLES = ("ba", "cor", "del", "en", "fi", "gra", "ho", "in", "ka", "lor", "mi", "nu", "or", "pe", "qua", "ri", "sto")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentences(seed: int, count: int) -> list[str]:
    """Return `count` made-up sentences, the same ones for the same seed."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(600)]
    return [" ".join(rng.choices(words, k=rng.randint(4, 14))).capitalize() + "." for _ in range(count)]


def make_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE, save it with its chat template, and return its vocabulary size."""
    # These live only in .venv-vllm, and an up-to-date model is recognised without paying for their import.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast  # type: ignore[import-not-found, unused-ignore]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes: no text is unknown
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(SEED, SENTENCES), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def make_weights(folder: Path, vocabulary_size: int, layers: int, hidden: int) -> None:
    """Save a Qwen3 of seeded random weights in `folder`, of so many layers and hidden dimensions."""
    # These live only in .venv-vllm, and an up-to-date model is recognised without paying for their import.
    import torch  # type: ignore[import-not-found, unused-ignore]
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=vocabulary_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=1,
        head_dim=32,  # the CPU attention kernel takes multiples of 32
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=MARKERS.index("<|im_end|>"),
        pad_token_id=MARKERS.index("<|endoftext|>"),
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def make(folder: Path, layers: int = LAYERS, hidden: int = HIDDEN) -> bool:
    """Make the model in `folder` and return True, or return False when this very program made it before."""
    shape = f"{layers} {hidden}".encode() if (layers, hidden) != (LAYERS, HIDDEN) else b""
    digest = hashlib.sha256(Path(__file__).read_bytes() + shape).hexdigest()
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == digest:
        return False
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        make_weights(draft, make_tokenizer(draft), layers, hidden)
        (draft / STAMP).write_text(digest)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise
    return True


def main(arguments: list[str]) -> int:
    """Make the model in the folder that is named, of so many layers and hidden dimensions where both are given."""
    if len(arguments) not in (1, 3) or not all(each.isdecimal() for each in arguments[1:]):
        sys.stderr.write("usage: tiny_model.py FOLDER [LAYERS HIDDEN]\n")
        return 2
    folder = Path(arguments[0])
    made = make(folder, *map(int, arguments[1:]))
    sys.stderr.write(f"tiny model: {'made' if made else 'up to date'} in {folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
