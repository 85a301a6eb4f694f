"""Find out why DropLoRA works: train, record, analyse and predict masked low-rank adapters."""
