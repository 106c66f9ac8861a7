"""Train vision and vision-language transformers and see, while they train, why they say what they say."""

__version__ = "0.1.0"
