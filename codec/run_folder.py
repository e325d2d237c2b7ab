"""Names of the files that a run folder and a published model hold.

The scripts that travel with a submission (`artifacts.submission.evaluate`, `artifacts.submission.retrain`) repeat these
names, because they do not import this module.
"""

WEIGHTS = "model.safetensors"
"""The weights of a checkpoint (`codec.model.checkpoint`), and of other projects' models."""

PACK = "model.pack"
"""The packed model."""

PROOF = "proof.json"
"""The stable fields of a proof of the pack (`eval.proof.saved`)."""

DOCUMENTS = "documents.json"
"""The sizes of a proof's documents and the surprisal of one document's tokens, for the report (`eval.proof.saved`)."""
