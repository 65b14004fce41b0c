"""The model card: its text, its Markdown, and settings in words."""
