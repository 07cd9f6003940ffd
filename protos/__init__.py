"""The contract both sides import: messages, payload codec, errors and channel options."""
