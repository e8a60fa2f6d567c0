"""What to turn down when training runs out of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedtune.models.lora import has_adapters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def memory_advice(args: Any, model: SentenceTransformer) -> str:
    """Say what to turn down after an out-of-memory error, what costs least first; what is done already is left out."""
    halved = max(args.per_device_train_batch_size // 2, 1)
    steps = [
        (not (args.bf16 or args.fp16), "bf16=True: activations take half, and steps are faster"),
        (
            not args.gradient_checkpointing,
            "gradient_checkpointing=True: the same gradients, in about a third more time",
        ),
        (
            args.mini_batch_num_tokens is None,
            "mini_batch_num_tokens=8192: any batch in the memory of a small one",
        ),
        (args.dropout is None, "dropout=0: fewer activations are kept"),
        (
            not has_adapters(model) and "8bit" not in str(args.optim),
            "load_model(..., lora=True): nearly no gradients and optimiser states; or optim='paged_adamw_8bit' (with "
            "bitsandbytes), a quarter of the optimiser's states",
        ),
        (
            args.per_device_train_batch_size > 1,
            f"per_device_train_batch_size={halved}, gradient_accumulation_steps={2 * args.gradient_accumulation_steps}: half "
            "the activations, but losses with negatives from the batch see fewer",
        ),
        (True, "shorter chunks: chunk_documents(..., max_tokens=...), or load_model(..., max_seq_length=...)"),
    ]
    lines = [text for applies, text in steps if applies]
    numbered = "\n".join(f"  {number}. {line}" for number, line in enumerate(lines, start=1))
    return (
        f"Training needs more memory than there is. In this order:\n{numbered}\nestimate_memory(model, args, data=data) "
        "tells what each of them saves."
    )
