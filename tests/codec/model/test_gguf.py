"""codec.model.families.gguf: models of one file, and files that were made to break the reader."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

from codec.errors import FormatError
from codec.model.families.gguf import load_gguf
from tests.support.families import FAMILIES, byte_pairs, family_weights

NAMES = ("llama", "qwen2", "qwen3", "gpt2")


def write(path: Path, name: str, kind: GGMLQuantizationType | None = None, **changes: object) -> Path:
    """A file as llama.cpp's converter makes it of the random model of a family."""
    config, weights, tokenizer = FAMILIES[name], family_weights(FAMILIES[name]), byte_pairs()
    file = GGUFWriter(path, config.family)
    file.add_context_length(config.window)
    file.add_embedding_length(config.model_dim)
    file.add_feed_forward_length(config.hidden_dim)
    file.add_block_count(config.num_layers)
    file.add_head_count(config.num_heads)
    file.add_head_count_kv(config.num_kv_heads)
    if name == "gpt2":
        file.add_layer_norm_eps(config.norm_epsilon)
    else:
        file.add_layer_norm_rms_eps(config.norm_epsilon)
        file.add_rope_freq_base(config.rope_base)
        file.add_vocab_size(config.vocab_size)
        file.add_key_length(config.head_dim)
    words = [word or tokenizer.controls.get(n, "") for n, word in enumerate(tokenizer.words)]
    words += [f"<{n}>" for n in range(len(words), config.vocab_size)]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(words)
    normal = {n for n, word in enumerate(tokenizer.words) if word}
    file.add_token_types([TokenType.NORMAL if n in normal else TokenType.CONTROL for n in range(len(words))])
    file.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    for key, value in changes.items():
        file.add_string(key.replace("__", "."), str(value))
    from codec.model.families.links import to_theirs
    from codec.model.families.registry import by_architecture

    links = by_architecture(config.family, "").gguf_links(config)
    for link, (theirs, tensor) in ((one, pair) for one in links for pair in to_theirs([one], weights).items()):
        if link.paired:  # as the converter turns Llama's heads
            tensor = tensor.reshape(link.paired, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        values = tensor.contiguous().numpy()
        if kind is not None and values.ndim == 2 and values.shape[1] % 32 == 0:
            file.add_tensor(theirs, quantize(values, kind), raw_dtype=kind)
        else:
            file.add_tensor(theirs, values)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.mark.parametrize("name", NAMES)
def test_files_are_read(name, tmp_path):
    state, config, tokenizer = load_gguf(write(tmp_path / "m.gguf", name))
    weights = family_weights(FAMILIES[name])
    assert config == FAMILIES[name].__class__(**{**vars(FAMILIES[name]), "begin": 1, "end": 2})
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    assert tokenizer.begin == 0  # the separator of training, whatever a chat begins with
    assert tokenizer.encode(b"Once upon a time").tolist() == byte_pairs().encode(b"Once upon a time").tolist()


def test_refusals_name_key_and_value(tmp_path):
    changes = {"llama__rope__scaling__type": "yarn"}
    with pytest.raises(FormatError, match=r"llama\.rope\.scaling\.type is 'yarn'; underpar knows 'none' or 'linear'"):
        load_gguf(write(tmp_path / "m.gguf", "llama", **changes))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama").read_bytes()


def test_damage_is_told(good, tmp_path):
    """Any end, and any few bytes: the model, or a typed error, in bounded memory."""
    path, generator = tmp_path / "m.gguf", np.random.default_rng(0)
    for size in (1, 4, 8, 24, 100, len(good) // 3, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(FormatError):
            load_gguf(path)
    for _ in range(150):
        damaged, at = bytearray(good), int(generator.integers(0, 12_000))
        damaged[at : at + 4] = generator.bytes(4)
        path.write_bytes(damaged)
        try:
            load_gguf(path)
        except FormatError:
            continue


def test_tensors_may_not_share_bytes(good, tmp_path):
    """A small file whose tensors are all the same bytes would take the memory of any model."""
    path, name = tmp_path / "m.gguf", b"blk.1.attn_norm.weight"
    at = good.index(name) + len(name) + 4 + 8 + 4  # behind the number of dimensions, one of them and the type
    other = good.index(b"blk.0.attn_norm.weight") + len(name) + 4 + 8 + 4
    path.write_bytes(good[:at] + good[other : other + 8] + good[at + 8 :])
    with pytest.raises(FormatError, match="bytes of another tensor"):
        load_gguf(path)


def test_arrays_are_bounded_together(tmp_path):
    """4,096 keys of a million entries each: the header is refused before lists of all are made."""
    path, key = tmp_path / "m.gguf", struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 20) + bytes(1 << 20)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 12) + 3 * key)
    with pytest.raises(FormatError, match="entries of arrays"):
        load_gguf(path)


@pytest.mark.parametrize("at", [8, 16])
def test_counts_beyond_the_file(at, good, tmp_path):
    path = tmp_path / "m.gguf"
    for count in (1 << 13, 1 << 20, 1 << 62):
        path.write_bytes(good[:at] + struct.pack("<Q", count) + good[at + 8 :])
        with pytest.raises(FormatError):
            load_gguf(path)
