//! Configuration: text to validated values, all errors at once.
