"""Names of the files that a run folder and a published model hold beside the checkpoint (`codec.model.checkpoint`).

The scripts that a submission takes along (`artifacts.submission.evaluate`, `artifacts.submission.retrain`) spell them
out: nothing there imports this module.
"""

PACK = "model.pack"
"""The packed model."""

PROOF = "proof.json"
"""The stable fields of a proof of the pack (`eval.proof.saved`)."""

DOCUMENTS = "documents.json"
"""What a report says of the documents of that proof (`eval.proof.saved`)."""
