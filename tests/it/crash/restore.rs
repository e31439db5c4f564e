//! Restores that end at any of their steps.
