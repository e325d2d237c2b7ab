"""Define the commands of this room; the only folder of it that imports typer."""

COMMANDS = {
    "train": "trainer.cli.train:train",
    "calibrate": "trainer.cli.train:calibrate",
    "retune": "trainer.cli.train:retune",
    "recall": "trainer.cli.train:recall",
    "data": "trainer.cli.data:data",
    "tokenizer": "trainer.cli.data:tokenizers",
}
"""Places of the function, or the group, of each command: a module is imported when its command runs."""
