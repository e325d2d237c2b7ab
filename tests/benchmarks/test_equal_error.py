"""tests.benchmarks.equal_error: the codecs of a row have one total error, and the table says the bytes of files."""

import torch
from safetensors.torch import save_file

import codec
from tests.benchmarks.equal_error import main


def test_the_table(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    state = {f"m{n}": torch.randn(80, 100, generator=generator) * 4.0**-n for n in range(3)} | {"v": torch.ones(9)}
    save_file(state, tmp_path / "a.safetensors")
    main(tmp_path / "a.safetensors", [4.0])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0].split()[0].split("-")[0] for row in rows[:4]] == ["pack,", "int", "sdclip", "pack,"]
    sizes, errors = ([row[i] for row in rows[:3]] for i in (1, 2))
    assert max(map(float, errors)) < 1.01 * min(map(float, errors))
    ours, *others = (int(size.replace(",", "")) for size in sizes)
    assert 0.9 * 24_000 * 4 / 8 < ours < min(others) and rows[1][5] == f"{others[0] / ours:.3f}"
    assert rows[3][1] == f"{len(codec.compress(state, lossless=['*'])):,}"
