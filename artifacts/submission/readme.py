"""Write the README.md of a submission from submission.json alone: the score, how to reproduce it, the counted bytes."""

from collections.abc import Mapping, Sequence
from typing import Any


def readme(submission: Mapping[str, Any]) -> str:
    """Write the README of a submission as Markdown."""
    proof, totals = submission["proof"], submission["ledger"]["totals"]
    parts = [
        f"# {submission['name']}",
        f"**{submission['val_bpb']:.5f} bits per byte**, {submission['bytes_total']:,} of "
        f"{submission['ledger']['limit']:,} bytes. By {submission['author']} (@{submission['github_id']}), "
        f"{submission['date']}, track `{submission['track']}`.",
        "The score is no loss that a script printed: `text.upz` is the text, coded with the model's probabilities by "
        "an arithmetic coder, and the code in this folder decodes it to the very same bytes.",
        "## See it again",
        "```\npip install -r requirements.txt\npython evaluate.py                     # all documents, no network\n"
        "python evaluate.py --documents 10      # the first ten\n"
        "python evaluate.py --docs VAL.jsonl    # and compare with a text of yours\n```",
        "A part of the documents does not check the score. The first minute compiles the decoder: with "
        "`UNDERPAR_CACHE=FOLDER` in the environment the machine code is kept for the next run.",
        "## Figures",
        _table(
            ("", ""),
            [
                ("documents", f"{proof['documents']:,}"),
                ("bytes of text", f"{proof['text_bytes']:,}"),
                ("of which a general compressor coded, not the model", f"{proof['stored_bytes']:,}"),
                ("bits per byte: exact model", f"{proof['bpb_exact']:.6f}"),
                ("integer frequencies", f"{proof['bpb_ideal']:.6f}"),
                ("really coded, over canonical bytes (the score)", f"{proof['bpb_canonical']:.6f}"),
                ("the whole archive, over the original bytes", f"{proof['bpb_raw']:.6f}"),
                ("SHA-256 of the documents, each behind its length (u64)", f"`{proof['sha256']}`"),
            ],
        ),
        "## Seeds",
        _table(
            ("seed", "val_bpb", "val_loss, nats per token", "pack bytes"),
            [
                (seed, f"{found['val_bpb']:.6f}", f"{found['val_loss']:.6f}", f"{found['artifact_bytes']:,}")
                for seed, found in submission["seed_results"].items()
            ],
        ),
        "Each was found again by decoding when this folder was made. The pack and the text of the first are here.",
        _claim(submission),
        "## Bytes",
        _table(
            ("rules", "bytes", "if every open question is answered yes"),
            [(rules, f"{total['bytes']:,}", f"{total['peak_bytes']:,}") for rules, total in totals.items()],
        ),
        f"Code {submission['bytes_code']:,} and model {submission['bytes_model']:,}; the tokenizer is in the model's "
        "file. By these rules the text, logs and this page do not count; `du -b` finds the same sizes, and `underpar "
        "ledger` counts them too, under strict rules. `code/` is source without comments and docstrings, otherwise as "
        "it was written.",
        *_questions(totals),
    ]
    if submission["trained_here"]:
        parts += ["## Train it", "`train_gpt.py` trains the model of `recipe.json` and packs it; it says how to call."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _claim(submission: Mapping[str, Any]) -> str:
    record = submission["record"]
    if not record:
        return "No record is claimed."
    return (
        f"Claimed: below {record['name']} ({record['record_mean']:.5f}, sd {record['record_deviation']:.5f}) by more "
        f"than {record['required']:.5f}, which is 0.005 nats of its tokens: Welch's t = {record['t']:.2f}, "
        f"{record['degrees']:.1f} degrees of freedom, p = {record['p']:.2g}."
    )


def _questions(totals: Mapping[str, Any]) -> list[str]:
    asked = {q["question"]: q["bytes"] for total in totals.values() for q in total["unsettled"]}
    return [f"Unsettled: {question} ({size:,} bytes)" for question, size in asked.items()]


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
