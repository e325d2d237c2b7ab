"""The command line: assemble the commands of the rooms, nothing else."""
