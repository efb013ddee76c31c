"""Text in and out of one base model: tokenizer, chat template, detokenisation, stop strings."""
