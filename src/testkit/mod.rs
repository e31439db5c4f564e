//! Doubles for the tests.
