"""The compiler's options are options, and recipes know their names."""

import torch._inductor.config

from trainer import recipe
from trainer.run.losses import COMPILING


def test_names_and_options_are_known() -> None:
    assert tuple(COMPILING) == recipe.COMPILING
    for options in COMPILING.values():
        for name in options:
            assert hasattr(torch._inductor.config, name)
