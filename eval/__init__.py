"""Everything between a model and a number: bpb accounting, the proof, reports."""
