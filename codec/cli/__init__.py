"""Define the commands of this room; the only folder of it that imports typer."""

COMMANDS = {
    "pack": "codec.cli.pack:pack",
    "unpack": "codec.cli.pack:unpack",
    "inspect": "codec.cli.pack:inspect",
    "encode": "codec.cli.encode:encode",
    "decode": "codec.cli.decode:decode",
    "merge": "codec.cli.merge:merge",
    "salvage": "codec.cli.decode:salvage",
}
"""Places of the function of each command: a module is imported when its command runs."""
