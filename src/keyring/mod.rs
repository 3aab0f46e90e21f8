//! Which DEKs are in memory, and how they come there.
