//! One file per compression method, named as its paper is.
