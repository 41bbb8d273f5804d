//! A model is a value: `Spec`, the queries on its graphs, and the executor.
