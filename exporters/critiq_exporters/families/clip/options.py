"""What the options that several families share mean, for the command line."""

TOKENIZER = (
    "Folder or file of the tokenizer (tokenizer.json, or vocab.json and merges.txt); the checkpoint's folder where "
    "left out."
)
ACTIVATION = (
    "Of the transformers: from the settings beside the weights, or, for a bare file of weights, quick_gelu (OpenAI's) "
    "or gelu (LAION's)."
)
