"""The prompt of the release."""

PROMPT = "clean, high-resolution, 8k"
