"""Define the commands of this room; the only folder of it that imports typer."""
