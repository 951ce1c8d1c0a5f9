"""Training the light parts of models that score from features of a large multimodal model (LMM).

The LMM is frozen and its features lie in a store (``critiq features build``), so this takes minutes on a CPU.
"""
