//! Everything that is read from the environment, one file a section. No other room reads it.
