"""The settings to change when training runs out of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedtune.models.lora import has_adapters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def memory_advice(args: Any, model: SentenceTransformer) -> str:
    """Return which settings save memory, the cheapest first, without those that are already set."""
    batch, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    advice = {
        "bf16=True: half the activations, and faster steps": not (args.bf16 or args.fp16),
        "gradient_checkpointing=True: the same gradients, at about a third more time": not args.gradient_checkpointing,
        "mini_batch_num_tokens=8192: the batch in pieces, at about a third more time": args.mini_batch_num_tokens
        is None,
        "dropout=0: fewer activations": args.dropout is None,
        "load_model(..., lora=True): almost no gradients and optimizer states; or optim='paged_adamw_8bit' (needs "
        "bitsandbytes): a quarter of the optimizer states": not has_adapters(model) and "8bit" not in str(args.optim),
        f"per_device_train_batch_size={max(batch // 2, 1)}, gradient_accumulation_steps={2 * steps}: half the activations, "
        "but fewer in-batch negatives": batch > 1,
        "shorter chunks: chunk_documents(..., max_tokens=...) or load_model(..., max_seq_length=...)": True,
    }
    lines = [text for text, applies in advice.items() if applies]
    numbered = "\n".join(f"  {number}. {line}" for number, line in enumerate(lines, start=1))
    return (
        f"Training needs more memory than there is. Try, in this order:\n{numbered}\n"
        "estimate_memory(model, args, data=data) shows what each of them saves."
    )
