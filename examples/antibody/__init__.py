"""Distils AntiBERTy, a published masked language model of antibodies, into one a tenth its size."""
