//! A weight is a sum of terms.
