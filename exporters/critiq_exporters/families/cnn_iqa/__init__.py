"""CNN-IQA (Kang et al., CVPR 2014)."""
