//! Perplexity, divergence from a reference, bits per weight.
