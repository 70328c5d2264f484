"""Public models in and out: folders of Hugging Face, any revision of them, to runs and back."""
