//! Number formats and their arithmetic on plain slices: no tensor library, no files.
